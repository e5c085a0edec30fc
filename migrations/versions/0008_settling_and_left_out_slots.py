"""How often settling an attempt was tried, and which slots of a schedule nobody recorded.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("schedule_runs", sa.Column("settle_tries", sa.Integer(), server_default=sa.text("0"), nullable=False))
    for name in ("left_out_after", "left_out_before"):
        op.add_column("schedules", sa.Column(name, sa.String(), nullable=True))
