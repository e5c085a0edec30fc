"""The values that travel between SQL and the rest of the program. All frozen; none knows how it is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NewType

from storage.states import QUARANTINE_CRASHES, JobState, ShardState

JobId = NewType("JobId", int)
ShardId = NewType("ShardId", int)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """Which model a job wants. `key` names its queue `m.<key>`: a hash of source, revision and dtype."""

    source: str  # Hub id, local directory or GGUF file
    revision: str | None
    dtype: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """What submit knows before planning. `spec` is everything that changes results, as JSON; `spec_hash` its hash."""

    run_key: str  # unique; by default derived from the output directory
    name: str
    model: ModelRef
    input_uri: str
    input_fingerprint: str
    output_uri: str  # absolute path of OUT
    spec: dict[str, Any]
    spec_hash: str
    options: dict[str, Any] = field(default_factory=dict)  # all that planning needs, as JSON
    max_shard_attempts: int = 5
    deadline_seconds: float | None = None  # from now on, by the database's clock
    deadline_at: float | None = None  # or seconds since 1970
    max_error_rate: float | None = None
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRecord:
    """What SQL keeps of a frozen plan. `path` is relative to OUT."""

    path: str
    sha256: str
    num_rows: int
    prompt_tokens: int
    predicted_cached_tokens: int
    lower_bound_tokens: int
    num_errors: int = 0  # rows that submit refused


@dataclass(frozen=True, slots=True, kw_only=True)
class NewShard:
    """Rows [row_lo, row_hi) of the plan's order, which are row group `idx` of the plan file."""

    idx: int
    row_lo: int
    row_hi: int
    cost_tokens: int
    num_outputs: int | None = None  # rows that come out: the sum of num_samples; None: one per row


@dataclass(frozen=True, slots=True, kw_only=True)
class NewGeneration:
    """Rows of a published job that are to run again. The shards' `idx` are row groups of this plan."""

    number: int
    plan: PlanRecord
    shards: tuple[NewShard, ...]
    kept: Mapping[str, int]  # results by status that the published generation hands on


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    id: JobId
    run_key: str
    name: str
    state: JobState
    model: ModelRef
    input_uri: str
    input_fingerprint: str
    output_uri: str
    spec: dict[str, Any]
    spec_hash: str
    plan: PlanRecord | None
    rows_total: int  # rows that come out, one per (input row, sample)
    rows_succeeded: int
    rows_errored: int
    rows_expired: int
    rows_canceled: int
    shards_total: int
    shards_done: int
    error: str | None
    cancel_requested: bool
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    manifest_sha256: str | None = None
    options: dict[str, Any] = field(default_factory=dict)  # empty: an older version submitted it
    max_shard_attempts: int = 5
    deadline: datetime | None = None
    max_error_rate: float | None = None
    tags: dict[str, str] = field(default_factory=dict)
    generation: int = 1  # of its output that is being made, or was made last
    published_generation: int = 0  # the newest that is published; 0: none

    @property
    def rows_done(self) -> int:
        return self.rows_succeeded + self.rows_errored + self.rows_expired + self.rows_canceled


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    id: ShardId
    job_id: JobId
    idx: int
    row_lo: int
    row_hi: int
    state: ShardState
    epoch: int
    lease_owner: str | None
    attempts: int
    crashes: int
    preemptions: int
    dispatch_seq: int
    out_key: str | None
    out_sha256: str | None
    out_rows: int | None
    error: str | None
    num_outputs: int = 0
    cost_tokens: int = 0
    failures: int = 0
    parent_id: ShardId | None = None
    plan_idx: int | None = None  # None: idx
    generation: int = 1  # of the job's output
    reopenings: int = 0  # times that a recorded file of it was found damaged

    @property
    def row_group(self) -> int:
        """The row group of the plan that holds its rows, which may be a part of it."""
        return self.idx if self.plan_idx is None else self.plan_idx

    @property
    def is_suspect(self) -> bool:
        """It may hold a row that kills its worker, so it runs alone."""
        return self.parent_id is not None or self.crashes >= QUARANTINE_CRASHES


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows of a shard that is split which become a shard of their own; `num_outputs` of them are not sealed yet."""

    row_lo: int
    row_hi: int
    num_outputs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What is wrong with the recorded files of a shard that has ended. `pieces`: rows of a split shard that neither
    its segments nor its parts hold any more."""

    shard_id: ShardId
    epoch: int
    error: str  # which file, and what is wrong with it
    attempts: tuple[int, ...] = ()  # of which a segment is damaged, by epoch
    pieces: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """What becomes a Celery message: try to claim this shard. Task id is `{shard_id}.{dispatch_seq}`."""

    job_id: JobId
    shard_id: ShardId
    dispatch_seq: int
    model_key: str
    model_source: str
    alone: bool = False  # the shard is suspected: its worker must run nothing else


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A won claim: the shard as it is now (epoch already raised), and its job."""

    shard: Shard
    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStats:
    """Counters of one layer group; `blocks_peak` and `blocks_mean` are gauges, the rest adds up."""

    index: int
    kind: str
    layers: int
    block_size: int
    window: int | None
    blocks_allocated: int = 0
    blocks_shared: int = 0
    blocks_copied: int = 0
    blocks_evicted: int = 0
    blocks_evicted_unused: int = 0
    blocks_peak: float = 0.0  # 1/k of a block that k jobs use
    blocks_mean: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStats:
    """Counters of some rows (a segment, an attempt, a job). prompt_tokens = cached_tokens + computed_tokens."""

    rows: int = 0
    prompt_tokens: int = 0
    planned_tokens: int = 0  # prompt tokens of these rows that the plan expected to be cached
    cached_tokens: int = 0
    computed_tokens: int = 0
    completion_tokens: int = 0
    forked_tokens: int = 0
    recomputed_tokens: int = 0
    wasted_tokens: int = 0  # computed by attempts whose rows were not sealed, as far as known
    preemptions: int = 0
    engine_seconds: float = 0.0
    limited_by: tuple[tuple[str, int], ...] = ()  # (what kept prompt tokens from being cached, tokens), by name
    groups: tuple[GroupStats, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One sealed file of finished rows of an attempt. `key` is relative to OUT."""

    seq: int
    key: str
    sha256: str
    rows: int
    epoch: int
    succeeded: int = 0
    errored: int = 0
    expired: int = 0
    canceled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The answer to a heartbeat: which (shard, epoch) we still hold, and what is wanted of their jobs."""

    held: frozenset[ShardId]
    cancelled: frozenset[ShardId]  # take no further row
    aborted: frozenset[ShardId] = frozenset()  # of these: end the rows in the engine as well
    paused: frozenset[ShardId] = frozenset()  # give it back; it goes on later


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What a worker says of itself with a heartbeat, in seconds before it; None: not yet."""

    loop_age: float | None = None
    step_age: float | None = None
    notice: str | None = None  # why it takes no new shard


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    id: str  # node name, e.g. gpu0@host
    boot_id: str
    model_key: str
    model_source: str
    device: str
    state: str  # starting, ready, draining, gone
    heartbeat_age: float  # seconds, on the database's clock
    loop_age: float | None = None  # since its event loop, and its engine, last showed that they live; None: never
    step_age: float | None = None
    notice: str | None = None
    drain_requested: bool = False
