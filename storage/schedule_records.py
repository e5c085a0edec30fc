"""Values of schedules and their runs that travel between SQL and the rest of the program. All frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NewType

from storage.records import JobId, NewJob
from storage.states import RunState

ScheduleId = NewType("ScheduleId", int)
RunRowId = NewType("RunRowId", int)
CatchUp = Literal["none", "latest", "all"]
Overlap = Literal["skip", "queue", "cancel_previous"]
Cause = Literal["schedule", "manual", "backfill"]
Notice = Literal["success", "failure", "missed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSchedule:
    """What a user declares."""

    name: str
    cron: str
    zone: str
    dataset: str  # absolute path
    job: dict[str, Any]
    terms: dict[str, Any] = field(default_factory=dict)
    catch_up: CatchUp = "latest"
    catch_up_limit: int = 1  # of `all`
    overlap: Overlap = "queue"
    max_active: int = 1
    only_new: bool = False
    deadline_seconds: float | None = None
    input_wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """`cursor`: the last slot that was looked at, `2026-11-27T02:30:00` in the schedule's own zone. `left_out`: when
    last too many slots came due at once, those between these two were put into no run."""

    id: ScheduleId
    declared: NewSchedule
    revision: int
    cursor: str
    paused: bool
    created_at: datetime
    ticked_at: datetime | None
    left_out: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        return self.declared.name


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run that enters the database. With a `job` it is `running` at once if there is a place for it, else queued."""

    label: str
    slot: str
    logical_time: float  # seconds since 1970
    state: RunState
    cause: Cause = "schedule"
    max_active: int = 1
    rank: int = 0
    backfill: str | None = None
    wait_until: float | None = None
    reason: str | None = None
    notice: Notice | None = None
    run_id: str | None = None
    job: NewJob | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One firing of a schedule: the newest attempt at one label."""

    id: RunRowId
    schedule_id: ScheduleId
    schedule: str  # its name
    label: str
    slot: str
    logical_time: datetime
    state: RunState
    cause: Cause
    attempt: int
    run_id: str | None
    job_id: JobId | None
    max_active: int
    rank: int
    backfill: str | None
    wait_until: float | None
    epoch: int
    gates: list[dict[str, Any]] | None
    reason: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    settle_tries: int = 0
    notice: Notice | None = None
    notice_tries: int = 0
    notice_error: str | None = None
    noticed: bool = False
