"""Moves of runs whose job has ended: running -> settling -> an end. Each function runs inside its caller's
transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update

from storage.database import now
from storage.errors import Fenced
from storage.repository import schedules as schedule_moves
from storage.repository.rows import as_run
from storage.repository.runs import get, selected
from storage.schedule_records import Notice, Run, RunRowId
from storage.schedule_tables import schedule_runs as runs
from storage.states import JOB_FINAL, RUN_FINAL, RunState
from storage.tables import jobs


def _unsettled() -> ColumnElement[bool]:
    """Its job has ended; or whoever settled it died; or rows of its job ran again after it was settled."""
    ended = select(jobs.c.id).where(jobs.c.state.in_(JOB_FINAL))
    again = ended.where(jobs.c.id == runs.c.job_id, jobs.c.published_generation > runs.c.generation).exists()
    return or_(
        and_(runs.c.state == RunState.RUNNING, runs.c.job_id.in_(ended), runs.c.lease_until <= now()),
        and_(runs.c.state == RunState.SETTLING, runs.c.lease_until < now()),
        and_(runs.c.state.in_(RUN_FINAL), again),
    )


def unsettled(conn: Connection) -> list[Run]:
    """Runs whose job has ended and that nobody settles."""
    return [as_run(row) for row in conn.execute(selected().where(_unsettled()).order_by(runs.c.slot, runs.c.id))]


def claim(conn: Connection, run: Run, owner: str, lease_seconds: float) -> int | None:
    """Two runs of one schedule are settled in turn: they change the same data set. None also when somebody has claimed
    it since `run` was read."""
    schedule_moves.locked(conn, run.schedule_id)
    busy = conn.scalar(
        select(func.count())
        .select_from(runs)
        .where(
            runs.c.schedule_id == run.schedule_id,
            runs.c.id != run.id,
            runs.c.state == RunState.SETTLING,
            runs.c.lease_until >= now(),
        )
    )
    if busy:
        return None
    return conn.execute(
        update(runs)
        .where(runs.c.id == run.id, runs.c.attempt == run.attempt, runs.c.epoch == run.epoch, _unsettled())
        .values(
            state=RunState.SETTLING,
            epoch=runs.c.epoch + 1,
            settle_tries=runs.c.settle_tries + 1,
            lease_owner=owner,
            lease_until=now() + lease_seconds,
            finished_at=None,
            settling_at=func.coalesce(runs.c.settling_at, now()),
        )
        .returning(runs.c.epoch)
    ).scalar_one_or_none()


def renew(conn: Connection, run: RunRowId, epoch: int, lease_seconds: float) -> None:
    renewed = conn.execute(
        update(runs)
        .where(runs.c.id == run, runs.c.epoch == epoch, runs.c.state == RunState.SETTLING)
        .values(lease_until=now() + lease_seconds)
    )
    if renewed.rowcount != 1:
        raise _fenced(conn, run, epoch, "renew its lease")


def release(conn: Connection, run: RunRowId, epoch: int, delay_seconds: float, counts: bool) -> None:
    """settling -> running, so that it holds nobody up; it may be claimed again after a while. A try that does not count
    is taken back."""
    released = conn.execute(
        update(runs)
        .where(runs.c.id == run, runs.c.epoch == epoch, runs.c.state == RunState.SETTLING)
        .values(
            state=RunState.RUNNING,
            lease_owner=None,
            lease_until=now() + delay_seconds if delay_seconds else 0,
            settle_tries=runs.c.settle_tries - (0 if counts else 1),
        )
    )
    if released.rowcount != 1:
        raise _fenced(conn, run, epoch, "release it")


def finish(
    conn: Connection,
    run: RunRowId,
    epoch: int,
    state: RunState,
    gates: Sequence[dict[str, Any]],
    reason: str | None,
    notice: Notice | None,
    generation: int,
) -> Run:
    finished = conn.execute(
        update(runs)
        .where(runs.c.id == run, runs.c.epoch == epoch, runs.c.state == RunState.SETTLING)
        .values(
            state=state,
            gates=list(gates),
            reason=reason,
            generation=generation,
            notice=notice,
            **dict.fromkeys(("notice_error", "noticed_at")),
            **dict.fromkeys(("notice_tries", "notice_after"), 0),
            finished_at=now(),
            lease_owner=None,
            lease_until=0,
        )
    )
    found = get(conn, run)
    if finished.rowcount != 1 and (found.epoch, found.state) != (epoch, state):  # else our own, whose answer was lost
        raise _fenced(conn, run, epoch, "finish it")
    return found


def _fenced(conn: Connection, run: RunRowId, epoch: int, wish: str) -> Fenced:
    now_is = get(conn, run)
    return Fenced(
        f"run {now_is.label} of schedule {now_is.schedule} is {now_is.state} under epoch {now_is.epoch};"
        f" epoch {epoch} may not {wish}"
    )
