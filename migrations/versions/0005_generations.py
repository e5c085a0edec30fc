"""Generations of a job's output: rows that run again after it was published.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table, name, first in (
        ("jobs", "generation", 1),
        ("jobs", "published_generation", 0),
        ("shards", "generation", 1),
    ):
        op.add_column(table, sa.Column(name, sa.Integer(), server_default=sa.text(str(first)), nullable=False))
    for status in ("succeeded", "errored", "expired", "canceled"):
        op.add_column("jobs", sa.Column(f"kept_{status}", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.execute("UPDATE jobs SET published_generation = 1 WHERE manifest_sha256 IS NOT NULL")
