"""Shards whose files were damaged before they were published, and claims whose answer was lost.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("reopenings", "reopened_under"):
        op.add_column("shards", sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("attempts", sa.Column("claim_id", sa.String(), nullable=True))
