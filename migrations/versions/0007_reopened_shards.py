"""Shards whose files were damaged before they were published.

Revision ID: 0007
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("reopenings", "reopened_under"):
        op.add_column("shards", sa.Column(name, sa.BigInteger(), server_default=sa.text("0"), nullable=False))
