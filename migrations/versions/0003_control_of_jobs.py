"""What a job needs to be planned, paused, retried and ended by whoever comes along.

Revision ID: 0003
Revises: 0002

Jobs that were submitted before have no frozen options: the same submit plans them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("options", sa.JSON(), server_default=sa.text("'{}'"), nullable=False))
    op.add_column("jobs", sa.Column("plan_errors", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    for name in ("paused_at", "abort_requested_at", "deadline_at", "max_error_rate"):
        op.add_column("jobs", sa.Column(name, sa.Double(), nullable=True))
