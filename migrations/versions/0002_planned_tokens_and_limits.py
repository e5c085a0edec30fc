"""What the plan expected to be cached, per attempt, and what kept prompt tokens from being cached.

Revision ID: 0002
Revises: 0001

Attempts that were made before have no plan on record and name no limit.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("attempts", sa.Column("planned_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.create_table(
        "cache_limits",
        sa.Column("shard_id", BigId, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("job_id", BigId, nullable=False),
        sa.Column("tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_cache_limits_job_id")),
        sa.ForeignKeyConstraint(["shard_id"], ["shards.id"], name=op.f("fk_cache_limits_shard_id")),
        sa.PrimaryKeyConstraint("shard_id", "epoch", "name", name=op.f("pk_cache_limits")),
    )
    op.create_index(op.f("ix_cache_limits_job_id"), "cache_limits", ["job_id"], unique=False)
