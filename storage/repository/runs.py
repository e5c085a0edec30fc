"""Moves of runs. Each function runs inside its caller's transaction; who starts or claims one holds its schedule."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from storage.database import now
from storage.errors import NoSuchSchedule
from storage.records import JobId, NewJob
from storage.repository import jobs as job_moves
from storage.repository import schedules as schedule_moves
from storage.repository.rows import as_run
from storage.schedule_records import NewRun, Notice, Run, RunRowId, ScheduleId
from storage.schedule_tables import schedule_runs as runs
from storage.schedule_tables import schedules
from storage.states import RUN_ACTIVE, RUN_FINAL, RUN_PENDING, RunState


def selected() -> Select[Any]:
    return select(runs, schedules.c.name.label("schedule_name")).join(schedules)


def get(conn: Connection, run: RunRowId) -> Run:
    row = conn.execute(selected().where(runs.c.id == run)).one_or_none()
    if row is None:
        raise NoSuchSchedule(f"there is no run {run}; `nightmill schedule show` lists those of a schedule")
    return as_run(row)


def of_schedule(conn: Connection, schedule_id: ScheduleId, labels: Collection[str] | None, limit: int) -> list[Run]:
    """Newest label first."""
    query = selected().where(runs.c.schedule_id == schedule_id).order_by(runs.c.label.desc()).limit(limit)
    return [as_run(row) for row in conn.execute(query if labels is None else query.where(runs.c.label.in_(labels)))]


def of_slot(conn: Connection, schedule_id: ScheduleId, slot: str) -> Run | None:
    row = conn.execute(selected().where(runs.c.schedule_id == schedule_id, runs.c.slot == slot)).first()
    return None if row is None else as_run(row)


def pending(conn: Connection) -> list[Run]:
    """Runs without a job, of schedules that are not paused, in the order in which they start."""
    rows = conn.execute(
        selected()
        .where(runs.c.state.in_(RUN_PENDING), schedules.c.paused_at.is_(None))
        .order_by(runs.c.schedule_id, runs.c.rank, runs.c.slot)
    )
    return [as_run(row) for row in rows]


def active(conn: Connection, schedule_id: ScheduleId) -> list[Run]:
    rows = conn.execute(
        selected().where(runs.c.schedule_id == schedule_id, runs.c.state.in_(RUN_ACTIVE)).order_by(runs.c.slot)
    )
    return [as_run(row) for row in rows]


def labelled(conn: Connection, schedule_id: ScheduleId, new: Sequence[NewRun]) -> list[NewRun]:
    """Each under the label that its slot has already: a changed expression may change the form of labels, and what was
    run as 2026-11-27 is not run again as 2026-11-27T00-00. The caller holds the schedule's row."""
    if not new:
        return []
    slots = [run.slot for run in new]
    found = select(runs.c.slot, runs.c.label).where(
        runs.c.schedule_id == schedule_id, runs.c.slot.between(min(slots), max(slots))
    )
    labels = {row.slot: row.label for row in conn.execute(found)}
    return [replace(run, label=labels.get(run.slot, run.label)) for run in new]


def add(conn: Connection, schedule_id: ScheduleId, new: Sequence[NewRun]) -> list[Run]:
    """Those whose label has a run already change nothing and are left out."""
    made = []
    for run in new:
        has_place = run.job is not None and _has_place(conn, schedule_id, run.backfill, run.max_active)
        run_id = _insert(conn, schedule_id, run, RunState.QUEUED if run.job is not None else run.state)
        if run_id is None:
            continue
        if has_place and run.job is not None and run.run_id is not None:
            begin(conn, run_id, 1, run.job, run.run_id)
        made.append(get(conn, run_id))
    return made


def _insert(conn: Connection, schedule_id: ScheduleId, run: NewRun, state: RunState) -> RunRowId | None:
    dialect = sqlite if conn.dialect.name == "sqlite" else postgresql
    found = conn.execute(
        dialect.insert(runs)
        .values(
            schedule_id=schedule_id,
            label=run.label,
            slot=run.slot,
            logical_time=run.logical_time,
            state=state,
            cause=run.cause,
            max_active=run.max_active,
            rank=run.rank,
            backfill=run.backfill,
            wait_until=run.wait_until,
            reason=run.reason,
            created_at=now(),
            finished_at=now() if state in RUN_FINAL else None,
            notice=run.notice,
        )
        .on_conflict_do_nothing(index_elements=["schedule_id", "label"])
        .returning(runs.c.id)
    ).scalar_one_or_none()
    return None if found is None else RunRowId(found)


def queue_again(conn: Connection, schedule_id: ScheduleId, run: NewRun, states: Collection[RunState]) -> Run | None:
    """An ended run -> queued, as its next attempt. None when it is in no such state."""
    found = conn.execute(
        update(runs)
        .where(runs.c.schedule_id == schedule_id, runs.c.label == run.label, runs.c.state.in_(RUN_FINAL & set(states)))
        .values(
            state=RunState.QUEUED,
            attempt=runs.c.attempt + 1,
            cause=run.cause,
            max_active=run.max_active,
            rank=run.rank,
            backfill=run.backfill,
            wait_until=run.wait_until,
            **dict.fromkeys(("run_id", "job_id", "gates", "reason", "started_at", "settling_at", "finished_at")),
            **dict.fromkeys(("notice", "notice_error", "noticed_at")),
            **dict.fromkeys(("notice_tries", "notice_after", "settle_tries", "generation", "lease_until"), 0),
        )
        .returning(runs.c.id)
    ).scalar_one_or_none()
    return None if found is None else get(conn, RunRowId(found))


# --- queued, waiting -> running -------------------------------------------------------------------------------------


def start(conn: Connection, run: Run, job: NewJob, run_id: str, revision: int | None) -> Run | None:
    """None when there is no place for it, or somebody else moved it or changed its schedule."""
    schedule = schedule_moves.locked(conn, run.schedule_id)
    if schedule.paused_at is not None or revision not in (None, schedule.revision):
        return None
    if not _has_place(conn, run.schedule_id, run.backfill, run.max_active):
        return None
    return get(conn, run.id) if begin(conn, run.id, run.attempt, job, run_id) else None


def begin(conn: Connection, run: RunRowId, attempt: int, job: NewJob, run_id: str) -> bool:
    """The run takes its job, in this very transaction. The caller holds the schedule's row."""
    begun = conn.execute(
        update(runs)
        .where(runs.c.id == run, runs.c.attempt == attempt, runs.c.state.in_(RUN_PENDING))
        .values(state=RunState.RUNNING, started_at=now(), run_id=run_id, reason=None)
    )
    if begun.rowcount != 1:
        return False
    made = job_moves.create(conn, job)
    conn.execute(update(runs).where(runs.c.id == run).values(job_id=made.id))
    return True


def _has_place(conn: Connection, schedule_id: ScheduleId, backfill: str | None, most: int) -> bool:
    """A backfill and the schedule's own runs have places of their own: neither holds the other up. But of runs that
    leave out what others have generated, one must have ended before the next begins, also one of a schedule that was
    removed and had the same data set."""
    schedule = conn.execute(
        select(schedules.c.only_new, schedules.c.dataset).where(schedules.c.id == schedule_id)
    ).one()
    kind: list[ColumnElement[bool]]
    if schedule.only_new:
        same = select(schedules.c.id).where(schedules.c.dataset == schedule.dataset)
        most, kind = 1, [runs.c.schedule_id.in_(same)]
    else:
        own = runs.c.backfill.is_(None) if backfill is None else runs.c.backfill.is_not(None)
        kind = [runs.c.schedule_id == schedule_id, own]
    taken = conn.scalar(select(func.count()).select_from(runs).where(runs.c.state.in_(RUN_ACTIVE), *kind))
    return int(taken or 0) < most


def move_pending(
    conn: Connection,
    run: Run,
    state: RunState,
    reason: str | None,
    notice: Notice | None,
    wait_until: float | None,
    revision: int | None,
) -> bool:
    """queued, waiting -> another state without a job. False when somebody else moved it or changed its schedule."""
    if revision not in (None, schedule_moves.locked(conn, run.schedule_id).revision):
        return False
    moved = conn.execute(
        update(runs)
        .where(runs.c.id == run.id, runs.c.attempt == run.attempt, runs.c.state == run.state)
        .values(
            state=state,
            reason=reason,
            notice=notice,
            wait_until=wait_until,
            finished_at=now() if state in RUN_FINAL else None,
        )
    )
    return moved.rowcount == 1


def owns(job_id: ColumnElement[JobId]) -> ColumnElement[bool]:
    """The job was made by a run: no submit is about to claim it."""
    return select(runs.c.id).where(runs.c.job_id == job_id).exists()
