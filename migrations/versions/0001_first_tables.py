"""First tables: jobs, shards and their attempts, segments, statistics; workers; schedules.

Revision ID: 0001
Revises: nothing
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    unretired = sa.text("retired_at IS NULL")
    op.create_table(
        "jobs",
        sa.Column("id", BigId, nullable=False),
        sa.Column("run_key", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("model_source", sa.String(), nullable=False),
        sa.Column("model_revision", sa.String()),
        sa.Column("model_dtype", sa.String(), nullable=False),
        sa.Column("model_key", sa.String(), nullable=False),
        sa.Column("input_uri", sa.String(), nullable=False),
        sa.Column("input_fingerprint", sa.String(), nullable=False),
        sa.Column("output_uri", sa.String(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("spec_hash", sa.String(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("max_shard_attempts", sa.Integer(), nullable=False),
        sa.Column("plan_path", sa.String()),
        sa.Column("plan_sha256", sa.String()),
        sa.Column("plan_rows", sa.BigInteger()),
        sa.Column("plan_prompt_tokens", sa.BigInteger()),
        sa.Column("plan_predicted_cached_tokens", sa.BigInteger()),
        sa.Column("plan_lower_bound_tokens", sa.BigInteger()),
        sa.Column("rows_total", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("rows_succeeded", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("rows_errored", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("rows_expired", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("rows_canceled", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("shards_total", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("shards_done", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("error", sa.String()),
        sa.Column("manifest_sha256", sa.String()),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_owner", sa.String()),
        sa.Column("lease_until", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("queued_at", sa.Double()),
        sa.Column("started_at", sa.Double()),
        sa.Column("finalizing_at", sa.Double()),
        sa.Column("cancel_requested_at", sa.Double()),
        sa.Column("finished_at", sa.Double()),
        sa.Column("retired_at", sa.Double()),
        sa.CheckConstraint(
            "rows_succeeded + rows_errored + rows_expired + rows_canceled <= rows_total", name=op.f("ck_jobs_rows")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index("ix_jobs_state", "jobs", ["state"], unique=False)
    op.create_index(
        "uq_jobs_output_uri", "jobs", ["output_uri"], unique=True, sqlite_where=unretired, postgresql_where=unretired
    )
    op.create_index(
        "uq_jobs_run_key", "jobs", ["run_key"], unique=True, sqlite_where=unretired, postgresql_where=unretired
    )

    op.create_table(
        "schedules",
        sa.Column("id", BigId, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("cron", sa.String(), nullable=False),
        sa.Column("timezone", sa.String(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedules")),
        sa.UniqueConstraint("name", name=op.f("uq_schedules_name")),
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("boot_id", sa.String(), nullable=False),
        sa.Column("model_key", sa.String(), nullable=False),
        sa.Column("model_source", sa.String(), nullable=False),
        sa.Column("device", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("heartbeat_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "schedule_runs",
        sa.Column("id", BigId, nullable=False),
        sa.Column("schedule_id", BigId, nullable=False),
        sa.Column("logical_time", sa.Double(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("job_id", BigId),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_schedule_runs_job_id")),
        sa.ForeignKeyConstraint(["schedule_id"], ["schedules.id"], name=op.f("fk_schedule_runs_schedule_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_schedule_runs")),
        sa.UniqueConstraint("schedule_id", "logical_time", name=op.f("uq_schedule_runs_schedule_id_logical_time")),
    )
    op.create_table(
        "shards",
        sa.Column("id", BigId, nullable=False),
        sa.Column("job_id", BigId, nullable=False),
        sa.Column("idx", sa.Integer(), nullable=False),
        sa.Column("row_lo", sa.BigInteger(), nullable=False),
        sa.Column("row_hi", sa.BigInteger(), nullable=False),
        sa.Column("num_outputs", sa.BigInteger(), nullable=False),
        sa.Column("cost_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("parent_id", BigId),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("lease_owner", sa.String()),
        sa.Column("lease_until", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("crashes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("preemptions", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("not_before", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("priority", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("dispatch_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("dispatched_at", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("out_key", sa.String()),
        sa.Column("out_sha256", sa.String()),
        sa.Column("out_rows", sa.BigInteger()),
        sa.Column("error", sa.String()),
        sa.CheckConstraint("row_lo < row_hi", name=op.f("ck_shards_range")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_shards_job_id")),
        sa.ForeignKeyConstraint(["parent_id"], ["shards.id"], name=op.f("fk_shards_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shards")),
        sa.UniqueConstraint("job_id", "idx", name=op.f("uq_shards_job_id_idx")),
    )
    op.create_index(op.f("ix_shards_job_id_state"), "shards", ["job_id", "state"], unique=False)
    op.create_index(op.f("ix_shards_state_lease_until"), "shards", ["state", "lease_until"], unique=False)

    op.create_table(
        "attempts",
        sa.Column("shard_id", BigId, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("job_id", BigId, nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("started_at", sa.Double(), nullable=False),
        sa.Column("ended_at", sa.Double()),
        sa.Column("outcome", sa.String()),
        sa.Column("rows", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("cached_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("computed_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("forked_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("recomputed_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("wasted_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("preemptions", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("engine_seconds", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_attempts_job_id")),
        sa.ForeignKeyConstraint(["shard_id"], ["shards.id"], name=op.f("fk_attempts_shard_id")),
        sa.PrimaryKeyConstraint("shard_id", "epoch", name=op.f("pk_attempts")),
    )
    op.create_index(op.f("ix_attempts_job_id"), "attempts", ["job_id"], unique=False)

    op.create_table(
        "cache_stats",
        sa.Column("shard_id", BigId, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("group_index", sa.Integer(), nullable=False),
        sa.Column("job_id", BigId, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("layers", sa.Integer(), nullable=False),
        sa.Column("block_size", sa.Integer(), nullable=False),
        sa.Column("window", sa.Integer()),
        sa.Column("blocks_allocated", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("blocks_shared", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("blocks_copied", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("blocks_evicted", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("blocks_evicted_unused", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("blocks_peak", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.Column("blocks_mean", sa.Double(), server_default=sa.text("0"), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_cache_stats_job_id")),
        sa.ForeignKeyConstraint(["shard_id"], ["shards.id"], name=op.f("fk_cache_stats_shard_id")),
        sa.PrimaryKeyConstraint("shard_id", "epoch", "group_index", name=op.f("pk_cache_stats")),
    )
    op.create_index(op.f("ix_cache_stats_job_id"), "cache_stats", ["job_id"], unique=False)

    op.create_table(
        "dead_rows",
        sa.Column("shard_id", BigId, autoincrement=False, nullable=False),
        sa.Column("job_id", BigId, nullable=False),
        sa.Column("row_lo", sa.BigInteger(), nullable=False),
        sa.Column("row_hi", sa.BigInteger(), nullable=False),
        sa.Column("num_outputs", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("detail", sa.String()),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_dead_rows_job_id")),
        sa.ForeignKeyConstraint(["shard_id"], ["shards.id"], name=op.f("fk_dead_rows_shard_id")),
        sa.PrimaryKeyConstraint("shard_id", name=op.f("pk_dead_rows")),
    )
    op.create_index(op.f("ix_dead_rows_job_id"), "dead_rows", ["job_id"], unique=False)

    op.create_table(
        "shard_segments",
        sa.Column("shard_id", BigId, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("succeeded", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("errored", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("expired", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("canceled", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("sealed_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["shard_id"], ["shards.id"], name=op.f("fk_shard_segments_shard_id")),
        sa.PrimaryKeyConstraint("shard_id", "epoch", "seq", name=op.f("pk_shard_segments")),
    )
