"""What the commands of schedules do, without printing: declare, run now, backfill, apply a file, follow runs."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from jobs.exits import TimedOut, UsageError
from jobs.schedules.backfill import AGAIN, Order, Which, backfill_key, choose, queued
from jobs.schedules.cron import Cron, Slot
from jobs.schedules.spec import differences, is_dated_input, parse_schedule
from jobs.schedules.template import slot_of
from storage.errors import ScheduleConflict
from storage.repository import Repository
from storage.schedule_records import NewRun, NewSchedule, Run, RunRowId, Schedule
from storage.states import RUN_FINAL, RUN_OPEN, RUN_PENDING, RunState

MOST_DATES = 10_000  # of one backfill


def cron_of(declared: NewSchedule) -> Cron:
    return Cron.parse(declared.cron, declared.zone)


def add(repository: Repository, declared: NewSchedule) -> Schedule:
    """It fires from now on. Raises ScheduleConflict."""
    return repository.add_schedule(declared, _wall(repository, declared))


def resume(repository: Repository, name: str) -> Schedule:
    """Slots of the pause are passed over; a backfill can run them. Raises NoSuchSchedule."""
    return repository.resume_schedule(name, _wall(repository, repository.get_schedule(name).declared))


def upcoming(schedule: Schedule) -> Slot | None:
    """The slot after the last one that was looked at."""
    return cron_of(schedule.declared).upcoming(schedule.cursor)


def _wall(repository: Repository, declared: NewSchedule) -> str:
    """The zone's clock now, as a cursor; or the newest slot that has come, where the clock shows an hour again."""
    cron, now = cron_of(declared), _now(repository)
    return max(cron.wall(now).isoformat(timespec="seconds"), *(slot.name for slot in cron.due("", now, 1)))


def _now(repository: Repository) -> datetime:
    return datetime.fromtimestamp(repository.clock(), UTC)


# --- a file of schedules --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Change:
    """From `old` to `new`, one of which is None for a schedule that is added or removed."""

    name: str
    old: Schedule | None
    new: NewSchedule | None
    lines: tuple[str, ...]


def read_file(path: Path) -> list[NewSchedule]:
    """`[schedules.NAME]` tables; paths are meant from the file's folder. Raises UsageError."""
    try:
        content = tomllib.loads(path.read_text())
        tables = content.pop("schedules", {})
        if content or not isinstance(tables, dict):
            raise ValueError(f"it holds {', '.join(content) or 'no tables'}; write tables [schedules.NAME] only")
        return [parse_schedule(name, table, path.resolve().parent) for name, table in tables.items()]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # also of TOML
        raise UsageError(f"{path}: {error}") from error


def changes(repository: Repository, wanted: Sequence[NewSchedule], *, prune: bool) -> list[Change]:
    """What has to be done so that the database says what is wanted; with `prune` others are removed."""
    present = {schedule.name: schedule for schedule in repository.schedules()}
    found = []
    for new in wanted:
        old = present.pop(new.name, None)
        lines = differences(old.declared if old else None, new)
        if lines:
            found.append(Change(new.name, old, new, tuple(lines)))
    removed = present.values() if prune else ()
    # First what frees a data set, then who may take it.
    return [Change(old.name, old, None, tuple(differences(old.declared, None))) for old in removed] + found


def apply(repository: Repository, change: Change) -> None:
    """Raises ScheduleConflict when somebody else changed it meanwhile."""
    if change.new is None:
        repository.remove_schedule(change.name)
    elif change.old is None:
        add(repository, change.new)
    else:
        repository.change_schedule(change.old, change.new, _cursor(repository, change.old, change.new))


def _cursor(repository: Repository, old: Schedule, new: NewSchedule) -> str | None:
    """Another expression counts from now on. Another zone goes on after the last slot, so that no label is left out
    or comes again."""
    return None if new.cron == old.declared.cron else max(old.cursor, _wall(repository, new))


# --- runs that somebody asks for ------------------------------------------------------------------------------------


def run_now(repository: Repository, name: str, label: str | None, *, again: bool) -> Run:
    """Queue the run of a label, by default of the newest slot that has come. One that has succeeded is repeated with
    `again` only. Raises NoSuchSchedule, UsageError, ScheduleConflict."""
    schedule = _going(repository, name)
    cron = cron_of(schedule.declared)
    slot = next(iter(cron.due("", _now(repository), 1)), None) if label is None else cron.labelled(label)
    if slot is None and label is not None:  # of an expression that was changed since
        slot = next((slot_of(run) for run in repository.runs(schedule.id, labels=[label])), None)
    if slot is None:
        raise UsageError(f"schedule {name} has no slot {label}; its labels look like {_example(schedule)}")
    new = NewRun(
        label=slot.label,
        slot=slot.name,
        logical_time=slot.instant.timestamp(),
        state=RunState.QUEUED,
        cause="manual",
        max_active=schedule.declared.max_active,
        rank=-1,
    )
    made = repository.queue_runs(schedule.id, [new], RUN_FINAL if again else RUN_FINAL - {RunState.SUCCEEDED})
    if made:
        return made[0]
    found = repository.run_of_slot(schedule.id, slot.name) or repository.runs(schedule.id, labels=[slot.label])[0]
    hint = "it is at work" if found.state in RUN_OPEN else "--again runs it once more"
    raise ScheduleConflict(f"run {found.label} of schedule {name} is {found.state.value}; {hint}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backfill:
    """`chosen`: the slots of the range that are to be done."""

    schedule: Schedule
    key: str
    which: Which
    order: Order
    max_active: int
    chosen: tuple[Slot, ...]
    in_range: int


def plan_backfill(
    repository: Repository,
    name: str,
    first: date,
    last: date,
    *,
    which: Which = "missing",
    order: Order = "forwards",
    max_active: int | None = None,
) -> Backfill:
    """Changes nothing. Raises NoSuchSchedule, UsageError."""
    schedule = _going(repository, name)
    declared = schedule.declared
    if last < first:
        raise UsageError(f"--to is {last}, which is before --from {first}")
    if declared.only_new and not is_dated_input(declared):
        raise UsageError(f"schedule {name} takes what is new in one input: its next run takes all of it, past or not")
    if declared.only_new and max_active not in (None, 1):
        raise UsageError(
            f"schedule {name} has only_new, so one run must end before the next begins; leave --max-active out"
        )
    now = _now(repository)
    in_range = islice(cron_of(declared).between(first, last), MOST_DATES + 1)
    slots = [slot for slot in in_range if slot.instant <= now]
    if len(slots) > MOST_DATES:
        raise UsageError(f"the range has more than {MOST_DATES} dates of schedule {name}; take it in parts")
    present = repository.runs(schedule.id)
    runs = {run.slot: run for run in present} | {run.label: run for run in present}
    key = backfill_key(declared, str(first), str(last), which)
    return Backfill(
        schedule=schedule,
        key=key,
        which=which,
        order=order,
        max_active=declared.max_active if max_active is None else max_active,
        chosen=tuple(choose(slots, runs, which, key)),
        in_range=len(slots),
    )


def start_backfill(repository: Repository, plan: Backfill) -> list[Run]:
    """The runs that are queued by this call, which may be fewer than planned when others were faster."""
    new = queued(plan.chosen, key=plan.key, order=plan.order, max_active=plan.max_active)
    return repository.queue_runs(plan.schedule.id, new, AGAIN[plan.which])


def _going(repository: Repository, name: str) -> Schedule:
    schedule = repository.get_schedule(name)
    _check_going(schedule)
    return schedule


def _check_going(schedule: Schedule) -> None:
    if schedule.paused:
        raise ScheduleConflict(
            f"schedule {schedule.name} is paused, so nothing of it starts: `nightmill schedule resume {schedule.name}`"
        )


def _example(schedule: Schedule) -> str:
    slot = upcoming(schedule)
    return "2026-11-27" if slot is None else slot.label


# --- following ------------------------------------------------------------------------------------------------------


def follow(
    repository: Repository,
    wanted: Sequence[RunRowId],
    *,
    poll_seconds: float,
    timeout: float | None = None,
    check: Callable[[], None] = lambda: None,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Run]:
    """Each run again when its state has changed, until all have ended. Raises TimedOut, ScheduleConflict when the
    schedule is paused before they begin, and what `check` raises."""
    deadline = None if timeout is None else monotonic() + timeout
    seen: dict[RunRowId, RunState] = {}
    while True:
        check()
        schedule = repository.schedule_of(repository.get_run(wanted[0])) if wanted else None  # first, then its runs
        for run_id in wanted:
            if seen.get(run_id) in RUN_FINAL:
                continue
            run = repository.get_run(run_id)
            if seen.get(run_id) != run.state:
                seen[run_id] = run.state
                yield run
        left = {state for state in seen.values() if state not in RUN_FINAL}
        if not left:
            return
        if schedule is not None and left <= RUN_PENDING:
            _check_going(schedule)
        if deadline is not None and monotonic() >= deadline:
            raise TimedOut("the runs have not ended in time; they go on, and `nightmill schedule show` tells of them")
        time.sleep(poll_seconds)


def as_row(run: Run) -> dict[str, Any]:
    """A run as the commands show it."""
    failed = [gate["name"] for gate in run.gates or () if not gate.get("passed")]
    return {
        "label": run.label,
        "state": run.state.value,
        "cause": run.cause,
        "attempt": run.attempt,
        "job": run.job_id,
        "run": run.run_id,
        "failed_gates": failed,
        "gates": run.gates,
        "started_at": run.started_at.isoformat() if run.started_at else None,
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
        "reason": run.reason,
        "notice": run.notice,
        "notice_taken": run.noticed,
        "notice_tries": run.notice_tries,
        "notice_error": run.notice_error,
    }
