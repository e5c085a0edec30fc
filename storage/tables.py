"""The tables. Times are seconds since 1970 on the database's clock; 0 in a NOT NULL time means "long ago".

jobs 1-n shards 1-n attempts 1-n cache_stats     an attempt is one epoch of a shard
                    attempts 1-n cache_limits
              shards 1-n shard_segments           finished rows, sealed by some attempt
              shards 1-1 dead_rows                rows of a shard that was given up
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    UniqueConstraint,
    text,
)

BigId = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER keys count up by themselves in SQLite

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


def _generation(name: str, first: int) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=text(str(first)))


def _seconds(name: str) -> Column[float]:
    return Column(name, Double, nullable=False, server_default=text("0"))


jobs = Table(
    "jobs",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("run_key", String, nullable=False),
    Column("name", String, nullable=False),
    Column("state", String, nullable=False),
    Column("model_source", String, nullable=False),
    Column("model_revision", String),
    Column("model_dtype", String, nullable=False),
    Column("model_key", String, nullable=False),
    Column("input_uri", String, nullable=False),
    Column("input_fingerprint", String, nullable=False),
    Column("output_uri", String, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("spec_hash", String, nullable=False),
    Column("options", JSON, nullable=False, server_default=text("'{}'")),  # all that planning needs
    Column("tags", JSON, nullable=False),
    Column("max_shard_attempts", Integer, nullable=False),
    Column("max_error_rate", Double),  # null: any number of rows may fail
    Column("deadline_at", Double),
    # the frozen plan; null until it is stored
    Column("plan_path", String),
    Column("plan_sha256", String),
    Column("plan_rows", BigInteger),
    Column("plan_prompt_tokens", BigInteger),
    Column("plan_predicted_cached_tokens", BigInteger),
    Column("plan_lower_bound_tokens", BigInteger),
    _count("plan_errors"),  # rows that submit refused
    # rows that come out, one per (input row, sample): total = pending + the four below
    _count("rows_total"),
    _count("rows_succeeded"),
    _count("rows_errored"),
    _count("rows_expired"),
    _count("rows_canceled"),
    # of these, what the generation before the present one hands on
    _count("kept_succeeded"),
    _count("kept_errored"),
    _count("kept_expired"),
    _count("kept_canceled"),
    _count("shards_total"),
    _count("shards_done"),
    _count("crashes"),  # deaths of workers that ran shards of it, each counted once
    Column("error", String),
    _generation("generation", 1),  # of the output that is being made, or was made last
    _generation("published_generation", 0),  # the newest that is published; 0: none
    Column("manifest_sha256", String),  # of that one
    # the right to plan or publish
    _count("epoch"),
    Column("lease_owner", String),
    _seconds("lease_until"),
    # one time per state
    Column("created_at", Double, nullable=False),
    Column("queued_at", Double),
    Column("started_at", Double),
    Column("finalizing_at", Double),
    Column("paused_at", Double),
    Column("cancel_requested_at", Double),
    Column("abort_requested_at", Double),  # a cancel that does not wait for the rows in the engines
    Column("finished_at", Double),
    Column("retired_at", Double),  # its run key and output directory are free again
    CheckConstraint("rows_succeeded + rows_errored + rows_expired + rows_canceled <= rows_total", name="rows"),
)
_unretired = text("retired_at IS NULL")
Index("uq_jobs_run_key", jobs.c.run_key, unique=True, sqlite_where=_unretired, postgresql_where=_unretired)
Index("uq_jobs_output_uri", jobs.c.output_uri, unique=True, sqlite_where=_unretired, postgresql_where=_unretired)
Index("ix_jobs_state", jobs.c.state)

shards = Table(
    "shards",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False),
    Column("idx", Integer, nullable=False),  # names its files
    Column("row_lo", BigInteger, nullable=False),
    Column("row_hi", BigInteger, nullable=False),
    Column("num_outputs", BigInteger, nullable=False),  # rows that must come out: rows times their samples
    _count("cost_tokens"),
    Column("parent_id", ForeignKey("shards.id")),  # of which it has some of the rows that were not sealed
    Column("plan_idx", Integer),  # row group of the plan that holds its rows; null: idx
    _generation("generation", 1),  # of the job's output
    Column("state", String, nullable=False),
    _count("epoch"),
    Column("lease_owner", String),
    _seconds("lease_until"),
    _count("attempts"),
    _count("crashes"),
    _count("failures"),
    _count("preemptions"),
    _seconds("not_before"),
    _count("priority"),
    _count("dispatch_seq"),
    _seconds("dispatched_at"),
    Column("out_key", String),
    Column("out_sha256", String),
    Column("out_rows", BigInteger),
    Column("error", String),
    _count("reopenings"),  # times that a recorded file of it was found damaged before it was published
    _count("reopened_under"),  # the job's epoch of the last time
    UniqueConstraint("job_id", "idx"),
    CheckConstraint("row_lo < row_hi", name="range"),
    Index(None, "job_id", "state"),
    Index(None, "state", "lease_until"),
)

attempts = Table(
    "attempts",
    metadata,
    Column("shard_id", ForeignKey("shards.id"), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("owner", String, nullable=False),
    Column("claim_id", String),  # by which its worker knows it again when the answer was lost
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("outcome", String),  # null while it runs; see storage.states.Outcome
    # sums over the segments that this attempt sealed
    _count("rows"),
    _count("prompt_tokens"),
    _count("planned_tokens"),
    _count("cached_tokens"),
    _count("computed_tokens"),
    _count("completion_tokens"),
    _count("forked_tokens"),
    _count("recomputed_tokens"),
    _count("wasted_tokens"),
    _count("preemptions"),
    _seconds("engine_seconds"),
    PrimaryKeyConstraint("shard_id", "epoch"),
)

cache_stats = Table(
    "cache_stats",
    metadata,
    Column("shard_id", ForeignKey("shards.id"), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("group_index", Integer, nullable=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("kind", String, nullable=False),
    Column("layers", Integer, nullable=False),
    Column("block_size", Integer, nullable=False),
    Column("window", Integer),
    _count("blocks_allocated"),
    _count("blocks_shared"),
    _count("blocks_copied"),
    _count("blocks_evicted"),
    _count("blocks_evicted_unused"),
    _seconds("blocks_peak"),
    _seconds("blocks_mean"),
    PrimaryKeyConstraint("shard_id", "epoch", "group_index"),
)

cache_limits = Table(
    "cache_limits",
    metadata,
    Column("shard_id", ForeignKey("shards.id"), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("name", String, nullable=False),  # the layer kind or the rule that kept tokens from being cached
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    _count("tokens"),
    PrimaryKeyConstraint("shard_id", "epoch", "name"),
)

shard_segments = Table(
    "shard_segments",
    metadata,
    Column("shard_id", ForeignKey("shards.id"), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("key", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("rows", BigInteger, nullable=False),
    _count("succeeded"),
    _count("errored"),
    _count("expired"),
    _count("canceled"),
    Column("sealed_at", Double, nullable=False),
    PrimaryKeyConstraint("shard_id", "epoch", "seq"),
)

dead_rows = Table(
    "dead_rows",
    metadata,
    Column("shard_id", ForeignKey("shards.id"), primary_key=True, autoincrement=False),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("row_lo", BigInteger, nullable=False),
    Column("row_hi", BigInteger, nullable=False),
    Column("num_outputs", BigInteger, nullable=False),  # those that no segment holds; counted as errored
    Column("reason", String, nullable=False),
    Column("detail", String),
)

workers = Table(
    "workers",
    metadata,
    Column("id", String, primary_key=True),
    Column("boot_id", String, nullable=False),
    Column("model_key", String, nullable=False),
    Column("model_source", String, nullable=False),
    Column("device", String, nullable=False),
    Column("state", String, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("heartbeat_at", Double, nullable=False),
    # when its event loop and its engine last showed that they live
    _seconds("loop_at"),
    _seconds("step_at"),
    Column("notice", String),  # why it takes no new shard
    Column("drain_requested_at", Double),
)
