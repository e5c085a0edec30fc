"""Schedules with their policies, and runs known by their label. No program has written the tables of 0001.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.drop_table("schedule_runs")
    op.drop_table("schedules")
    op.create_table(
        "schedules",
        sa.Column("id", BigId, nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("name", "cron", "zone")),
        sa.Column("job", sa.JSON(), nullable=False),
        sa.Column("terms", sa.JSON(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("dataset", "catch_up")),
        _integer("catch_up_limit", 1),
        sa.Column("overlap", sa.String(), nullable=False),
        _integer("max_active", 1),
        sa.Column("only_new", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("deadline_seconds", sa.Double()),
        _zero("input_wait_seconds", sa.Double()),
        _integer("revision", 1),
        sa.Column("cursor", sa.String(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        *(sa.Column(name, sa.Double()) for name in ("ticked_at", "paused_at", "removed_at")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedules")),
    )
    present = sa.text("removed_at IS NULL")
    for name in ("name", "dataset"):
        op.create_index(
            f"uq_schedules_{name}", "schedules", [name], unique=True, sqlite_where=present, postgresql_where=present
        )
    _create_runs()


def _create_runs() -> None:
    op.create_table(
        "schedule_runs",
        sa.Column("id", BigId, nullable=False),
        sa.Column("schedule_id", BigId, nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("label", "slot")),
        sa.Column("logical_time", sa.Double(), nullable=False),
        *(sa.Column(name, sa.String(), nullable=False) for name in ("state", "cause")),
        _integer("attempt", 1),
        sa.Column("run_id", sa.String()),
        sa.Column("job_id", BigId),
        _integer("generation", 0),
        _integer("max_active", 1),
        _integer("rank", 0),
        sa.Column("backfill", sa.String()),
        sa.Column("wait_until", sa.Double()),
        _zero("epoch", sa.BigInteger()),
        sa.Column("lease_owner", sa.String()),
        _zero("lease_until", sa.Double()),
        sa.Column("gates", sa.JSON()),
        sa.Column("reason", sa.String()),
        sa.Column("created_at", sa.Double(), nullable=False),
        *(sa.Column(name, sa.Double()) for name in ("started_at", "settling_at", "finished_at")),
        sa.Column("notice", sa.String()),
        _integer("notice_tries", 0),
        _zero("notice_after", sa.Double()),
        sa.Column("notice_error", sa.String()),
        sa.Column("noticed_at", sa.Double()),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_schedule_runs_job_id")),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], name=op.f("fk_schedule_runs_schedule_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedule_runs")),
        sa.UniqueConstraint("schedule_id", "label", name=op.f("uq_schedule_runs_schedule_id_label")),
    )
    for name in ("state", "job_id"):
        op.create_index(f"ix_schedule_runs_{name}", "schedule_runs", [name])


def _integer(name: str, first: int) -> sa.Column[int]:
    return sa.Column(name, sa.Integer(), server_default=sa.text(str(first)), nullable=False)


def _zero(name: str, kind: sa.types.TypeEngine[float]) -> sa.Column[float]:
    return sa.Column(name, kind, server_default=sa.text("0"), nullable=False)
