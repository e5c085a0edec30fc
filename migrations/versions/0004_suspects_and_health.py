"""Crashes told apart from failures, shards that are parts of others, and the health of workers.

Revision ID: 0004
Revises: 0003

Until now a shard's crashes counted its failed attempts too; its attempts tell them apart. A shard that crashed more
often than makes it suspected has not run alone yet: it is suspected and no more.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ZERO = sa.text("0")
COUNT_ATTEMPTS = "(SELECT count(*) FROM attempts WHERE attempts.shard_id = shards.id AND attempts.outcome = '{}')"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("crashes", sa.BigInteger(), server_default=ZERO, nullable=False))
    op.add_column("shards", sa.Column("plan_idx", sa.Integer(), nullable=True))
    op.add_column("shards", sa.Column("failures", sa.BigInteger(), server_default=ZERO, nullable=False))
    op.execute(
        f"UPDATE shards SET failures = {COUNT_ATTEMPTS.format('failed')}, crashes = {COUNT_ATTEMPTS.format('crashed')}"
    )
    op.execute("UPDATE shards SET crashes = 2 WHERE crashes > 2 AND state IN ('ready', 'queued', 'running')")
    op.add_column("workers", sa.Column("loop_at", sa.Double(), server_default=ZERO, nullable=False))
    op.add_column("workers", sa.Column("step_at", sa.Double(), server_default=ZERO, nullable=False))
    op.add_column("workers", sa.Column("notice", sa.String(), nullable=True))
    op.add_column("workers", sa.Column("drain_requested_at", sa.Double(), nullable=True))
