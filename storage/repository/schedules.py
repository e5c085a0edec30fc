"""Moves of schedules. Each function runs inside its caller's transaction.

Lock order: first the schedule's row, then its runs, then their jobs.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from storage.database import now
from storage.errors import NoSuchSchedule, ScheduleConflict
from storage.repository.rows import as_schedule
from storage.schedule_records import NewSchedule, Schedule, ScheduleId
from storage.schedule_tables import schedule_runs, schedules
from storage.states import RUN_PENDING, RunState

_PRESENT = schedules.c.removed_at.is_(None)


def add(conn: Connection, new: NewSchedule, cursor: str) -> Schedule:
    row = conn.execute(
        insert(schedules).values(**asdict(new), cursor=cursor, created_at=now()).returning(schedules)
    ).one()
    return as_schedule(row)


def every(conn: Connection) -> list[Schedule]:
    return [as_schedule(row) for row in conn.execute(select(schedules).where(_PRESENT).order_by(schedules.c.name))]


def find(conn: Connection, name: str) -> Schedule | None:
    row = conn.execute(select(schedules).where(schedules.c.name == name, _PRESENT)).one_or_none()
    return None if row is None else as_schedule(row)


def get(conn: Connection, schedule_id: ScheduleId) -> Schedule:
    """Also one that was removed: its runs refer to it."""
    return as_schedule(conn.execute(select(schedules).where(schedules.c.id == schedule_id)).one())


def change(conn: Connection, schedule_id: ScheduleId, revision: int, new: NewSchedule, cursor: str | None) -> Schedule:
    values: dict[str, Any] = asdict(new) | {"revision": schedules.c.revision + 1}
    row = conn.execute(
        update(schedules)
        .where(schedules.c.id == schedule_id, schedules.c.revision == revision, _PRESENT)
        .values(**values, **({} if cursor is None else {"cursor": cursor}))
        .returning(schedules)
    ).one_or_none()
    if row is None:
        raise ScheduleConflict(f"schedule {new.name} was changed by somebody else meanwhile; look at it and try again")
    return as_schedule(row)


def pause(conn: Connection, name: str) -> Schedule:
    conn.execute(
        update(schedules)
        .where(schedules.c.name == name, _PRESENT, schedules.c.paused_at.is_(None))
        .values(paused_at=now())
    )
    return _named(conn, name)


def resume(conn: Connection, name: str, cursor: str) -> Schedule:
    conn.execute(
        update(schedules)
        .where(schedules.c.name == name, _PRESENT, schedules.c.paused_at.is_not(None))
        .values(paused_at=None, cursor=cursor)
    )
    return _named(conn, name)


def remove(conn: Connection, name: str) -> Schedule:
    """Runs that have not begun are cancelled; those at work are settled as ever."""
    schedule = _named(conn, name)
    conn.execute(
        update(schedules).where(schedules.c.id == schedule.id, _PRESENT).values(removed_at=now(), paused_at=now())
    )
    conn.execute(
        update(schedule_runs)
        .where(schedule_runs.c.schedule_id == schedule.id, schedule_runs.c.state.in_(RUN_PENDING))
        .values(state=RunState.CANCELLED, reason="its schedule was removed", finished_at=now())
    )
    return schedule


def turn_to(conn: Connection, seen: Schedule, cursor: str, left_out_before: str | None) -> bool:
    """Move the cursor, and hold the schedule's row to the end of the transaction. False when somebody else moved it or
    changed what is declared, or the schedule is paused."""
    left_out = {"left_out_after": seen.cursor, "left_out_before": left_out_before} if left_out_before else {}
    turned = conn.execute(
        update(schedules)
        .where(
            schedules.c.id == seen.id,
            schedules.c.revision == seen.revision,
            schedules.c.cursor == seen.cursor,
            schedules.c.paused_at.is_(None),
            _PRESENT,
        )
        .values(cursor=cursor, ticked_at=now(), **left_out)
    )
    return turned.rowcount == 1


def going(conn: Connection, schedule_id: ScheduleId) -> None:
    """Hold the schedule's row. Raises NoSuchSchedule, ScheduleConflict for one whose runs would not start."""
    row = locked(conn, schedule_id)
    if row.removed_at is not None:
        raise NoSuchSchedule(f"schedule {row.name} was removed; `nightmill schedule list` shows all that there are")
    if row.paused_at is not None:
        raise ScheduleConflict(
            f"schedule {row.name} is paused, so nothing of it starts: `nightmill schedule resume {row.name}`"
        )


def locked(conn: Connection, schedule_id: ScheduleId) -> Row[Any]:
    return conn.execute(select(schedules).where(schedules.c.id == schedule_id).with_for_update(key_share=True)).one()


def _named(conn: Connection, name: str) -> Schedule:
    found = find(conn, name)
    if found is None:
        raise NoSuchSchedule(f"there is no schedule {name}; `nightmill schedule list` shows all")
    return found
