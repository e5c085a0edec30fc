"""The only SQL of the program. Every move is one conditional UPDATE whose row count is checked.

All times are the database's clock. Methods are named for the moves of `storage.states`. Each call is one transaction.
Foreign errors are translated: an unreachable database raises DatabaseDown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from storage.records import (
    Beat,
    Claim,
    Hint,
    Job,
    JobId,
    ModelRef,
    NewJob,
    NewShard,
    PlanRecord,
    RunStats,
    Segment,
    Shard,
    ShardId,
    WorkerRecord,
)


class Repository:
    """Jobs, shards, segments, workers and statistics in SQLite or PostgreSQL."""

    def __init__(self, url: str) -> None:
        """Open the database; does not create or migrate it. Raises DatabaseDown."""
        raise NotImplementedError

    def close(self) -> None: ...
    def check_schema(self) -> None:
        """Raise SchemaOutdated unless the database is at this program's migration."""

    # --- jobs -----------------------------------------------------------------------------------------------
    def create_job(self, new: NewJob) -> Job:
        """Insert a job in state validating. Raises JobConflict when run_key or output_uri is taken."""

    def claim_job(self, job_id: JobId, owner: str, lease_seconds: float) -> int | None:
        """Take the right to plan (validating) or publish (finalizing) a job; its new epoch, or None if held."""

    def renew_job(self, job_id: JobId, epoch: int, lease_seconds: float) -> None:
        """Extend the lease of claim_job. Raises Fenced."""

    def queue_job(self, job_id: JobId, epoch: int, plan: PlanRecord, shards: Iterable[NewShard]) -> Job:
        """validating -> queued: store the plan and its shards (streamed, inserted in batches). Raises Fenced."""

    def complete_job(self, job_id: JobId, epoch: int, manifest_sha256: str) -> Job:
        """finalizing -> completed | failed (zero rows succeeded), or cancelling -> cancelled. Raises Fenced."""

    def fail_job(self, job_id: JobId, epoch: int | None, error: str) -> None:
        """Any open state -> failed; its open shards -> cancelled. Epoch None: whoever holds it."""

    def request_cancel(self, job_id: JobId) -> Job:
        """Flag a cancel, cancel its shards that are not running; the job moves to cancelling."""

    def get_job(self, job_id: JobId) -> Job:
        """Raises NoSuchJob."""

    def find_job(self, *, run_key: str | None = None, output_uri: str | None = None) -> Job | None: ...
    def list_jobs(self, limit: int = 100) -> list[Job]:
        """Newest first."""

    def advance_jobs(self) -> list[Job]:
        """in_progress (or cancelling) jobs without an open shard -> finalizing (cancelling stays); returns every job
        that now waits for a finaliser and has no live lease."""

    def shards(self, job_id: JobId) -> list[Shard]:
        """In plan order."""

    # --- shards ---------------------------------------------------------------------------------------------
    def dispatch(self, model_key: str | None, window: int, stale_seconds: float) -> list[Hint]:
        """ready -> queued until `window` shards per model are queued, oldest job first; and hints queued longer than
        `stale_seconds` again, with a raised dispatch_seq. The caller publishes what is returned, after the commit."""

    def claim_shard(self, shard_id: ShardId, owner: str, lease_seconds: float) -> Claim | None:
        """ready, queued or running with an expired lease -> running under epoch + 1. An expired lease counts a crash.
        The first claim moves the job from queued to in_progress. None: nothing to do, drop the hint."""

    def heartbeat(self, owner: str, held: Collection[tuple[ShardId, int]], lease_seconds: float) -> Beat:
        """Renew all leases of one worker in one statement."""

    def seal_segment(self, shard_id: ShardId, segment: Segment, stats: RunStats) -> None:
        """Record a sealed segment, its rows' counters and the job's row counts in one transaction. Raises Fenced."""

    def segments(self, shard_id: ShardId) -> list[Segment]:
        """All recorded segments of a shard, of every epoch, in the order in which they were sealed."""

    def commit_shard(self, shard_id: ShardId, epoch: int, out_key: str, out_sha256: str, rows: int, gauges: RunStats) -> None:
        """running -> done. `gauges` carries peak and mean block use of this attempt. Raises Fenced."""

    def release_shard(self, shard_id: ShardId, epoch: int, *, reason: str, preempted: bool, delay_seconds: float = 0.0,
                      wasted_tokens: int = 0) -> None:
        """running -> ready with no crash counted (preemption, full disk, drain) or as a failed attempt."""

    def expire_leases(self, max_attempts: int) -> list[Shard]:
        """running with an expired lease -> ready with a crash counted, or -> dead once `max_attempts` crashes are spent
        (its rows become dead rows with reason engine_killer)."""

    def dead_rows(self, job_id: JobId) -> list[tuple[int, int, str]]:
        """(row_lo, row_hi, reason) in plan order of shards that were given up."""

    # --- workers --------------------------------------------------------------------------------------------
    def register_worker(self, worker: WorkerRecord) -> None: ...
    def beat_worker(self, worker_id: str, boot_id: str, state: str) -> None: ...
    def workers(self, max_age_seconds: float | None = None) -> list[WorkerRecord]: ...
    def waiting_models(self) -> list[tuple[ModelRef, int]]:
        """Models with open shards and how many, the model of the oldest waiting job first."""

    # --- statistics -----------------------------------------------------------------------------------------
    def job_stats(self, job_id: JobId) -> RunStats:
        """Sums over all sealed segments; gauges: peak = max, mean = weighted by engine seconds, over attempts."""

    def check_integrity(self) -> None:
        """Assert that counts, states and leases agree with each other (tests, doctor)."""
