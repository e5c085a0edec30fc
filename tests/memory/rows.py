"""What the model in memory keeps of jobs and shards."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime

from storage.errors import Fenced
from storage.records import JobId, NewJob, PlanRecord, Segment, Shard, ShardId
from storage.states import QUARANTINE_CRASHES, SHARD_OPEN, JobState, Outcome, ShardState

STATUSES = ("succeeded", "errored", "expired", "canceled")
_SHARD_FIELDS = tuple(field.name for field in fields(Shard))


@dataclass(slots=True)
class JobRow:
    """What changes of a job; `new` does not."""

    id: JobId
    new: NewJob
    state: JobState = JobState.VALIDATING
    epoch: int = 0
    lease_until: float = 0.0
    plan: PlanRecord | None = None
    shards: list[ShardRow] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("total", *STATUSES), 0))
    error: str | None = None
    crashes: int = 0  # deaths of workers
    cancelled_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    manifest_sha256: str | None = None

    @property
    def has_open_shard(self) -> bool:
        return any(shard.state in SHARD_OPEN for shard in self.shards)


@dataclass(slots=True)
class ShardRow:
    job: JobRow
    id: ShardId
    job_id: JobId
    idx: int
    row_lo: int
    row_hi: int
    cost_tokens: int
    num_outputs: int
    state: ShardState = ShardState.READY
    epoch: int = 0
    lease_owner: str | None = None
    lease_until: float = 0.0
    attempts: int = 0
    crashes: int = 0
    preemptions: int = 0
    not_before: float = 0.0
    dispatch_seq: int = 0
    dispatched_at: float = 0.0
    out_key: str | None = None
    out_sha256: str | None = None
    out_rows: int | None = None
    error: str | None = None
    failures: int = 0
    parent_id: ShardId | None = None
    plan_idx: int | None = None
    generation: int = 1
    claim_id: str | None = None  # of the last epoch
    reopenings: int = 0
    reopened_under: int = 0  # the epoch of its job
    dead: str | None = None  # the reason of its dead rows
    dead_outputs: int = 0
    segments: list[Segment] = field(default_factory=list)
    outcomes: dict[int, Outcome | None] = field(default_factory=dict)  # of each epoch
    begun: dict[int, tuple[str, float]] = field(default_factory=dict)  # the worker of each epoch, and since when
    ended: dict[int, float] = field(default_factory=dict)  # of each epoch
    wasted_tokens: int = 0

    def record(self) -> Shard:
        return Shard(**{name: getattr(self, name) for name in _SHARD_FIELDS})

    @property
    def is_suspect(self) -> bool:
        return self.parent_id is not None or self.crashes >= QUARANTINE_CRASHES

    @property
    def crashed_alone(self) -> bool:
        return self.crashes > (QUARANTINE_CRASHES if self.parent_id is None else 0)

    @property
    def sealed(self) -> int:
        return sum(segment.rows for segment in self.segments)


def fenced_job(job: JobRow, epoch: int, wish: str) -> Fenced:
    return Fenced(f"job {job.id} is {job.state} under epoch {job.epoch}; epoch {epoch} may not {wish}")


def cancel(job: JobRow, states: Collection[ShardState]) -> None:
    for shard in job.shards:
        if shard.state in states:
            if shard.state is ShardState.RUNNING:
                shard.outcomes[shard.epoch] = Outcome.CANCELLED
            shard.state, shard.lease_owner, shard.lease_until = ShardState.CANCELLED, None, 0.0


def end_attempt(shard: ShardRow, outcome: Outcome, now: float) -> None:
    """A crash counts a death of the worker, once for all attempts that died of it together."""
    owner, begin = shard.begun[shard.epoch]
    if outcome is Outcome.CRASHED and not any(
        other.begun[epoch][0] == owner and end is Outcome.CRASHED and other.ended[epoch] >= begin
        for other in shard.job.shards
        for epoch, end in other.outcomes.items()
    ):
        shard.job.crashes += 1
    shard.outcomes[shard.epoch], shard.ended[shard.epoch] = outcome, now


def finalize_if_last(job: JobRow) -> None:
    if job.state is JobState.IN_PROGRESS and not job.has_open_shard:
        job.state = JobState.FINALIZING


def as_time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
