"""Moves that somebody asks of a job, or asked when it was submitted. Each runs inside its caller's transaction."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, case, or_, select, update

from storage.database import now
from storage.errors import JobConflict
from storage.records import Job, JobId
from storage.repository.jobs import LEASED, cancel_shards, end, fenced, get, too_many_errors
from storage.repository.rows import as_job
from storage.repository.runs import owns
from storage.states import JOB_RUNNABLE, SHARD_WAITING, JobState, ShardState
from storage.tables import jobs, shards

FEW_ROWS = 200
"""Before so many rows have ended, their errors say little about the job."""

_PLANNED = (*JOB_RUNNABLE, JobState.PAUSED)
_LATE = jobs.c.deadline_at <= now()
_ENDED = jobs.c.rows_succeeded + jobs.c.rows_errored + jobs.c.rows_expired + jobs.c.rows_canceled


def _fails_too_often() -> ColumnElement[bool]:
    """Either more rows have failed than may of all, or more of those that ran. Rows that submit refused come first in
    the plan's order; they say nothing of the others, so they are left out of the second rule."""
    ran, failed = _ENDED - jobs.c.plan_errors, jobs.c.rows_errored - jobs.c.plan_errors
    return or_(
        jobs.c.rows_errored > jobs.c.max_error_rate * jobs.c.rows_total,
        and_(ran >= FEW_ROWS, failed > jobs.c.max_error_rate * ran),
    )


def release(conn: Connection, job_id: JobId, epoch: int, why: str | None) -> None:
    """The right to plan or publish goes back: anybody may take it at once. Why a job is being stopped stays."""
    plans = jobs.c.state == JobState.VALIDATING
    released = conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.epoch == epoch, jobs.c.state.in_(LEASED))
        .values(lease_owner=None, lease_until=0, error=case((plans, why), else_=jobs.c.error))
    )
    if released.rowcount != 1:
        raise fenced(conn, job_id, epoch, "release it")


def unplanned(conn: Connection, idle_seconds: float) -> list[Job]:
    """Oldest first. A job so young that its submit may not have come to claim it is left alone, but for those of
    schedules, which have no submit."""
    rows = conn.execute(
        select(jobs)
        .where(
            jobs.c.state == JobState.VALIDATING,
            jobs.c.lease_until < now(),
            or_(jobs.c.created_at < now() - idle_seconds, owns(jobs.c.id)),
        )
        .order_by(jobs.c.id)
    )
    return [as_job(row) for row in rows]


# --- queued, in_progress <-> paused ---------------------------------------------------------------------------------


def pause(conn: Connection, job_id: JobId) -> Job:
    moved = conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state.in_(JOB_RUNNABLE))
        .values(state=JobState.PAUSED, paused_at=now())
    )
    job = get(conn, job_id)
    if moved.rowcount != 1 and job.state != JobState.PAUSED:
        raise JobConflict(f"job {job_id} is {job.state}; only a job that is queued or in progress can be paused")
    _forget_hints(conn, job_id)
    return job


def resume(conn: Connection, job_id: JobId) -> Job:
    moved = conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == JobState.PAUSED)
        .values(state=case((jobs.c.started_at.is_(None), JobState.QUEUED), else_=JobState.IN_PROGRESS), paused_at=None)
    )
    job = get(conn, job_id)
    if moved.rowcount == 1:
        _forget_hints(conn, job_id)  # of a dispatch that overlapped with the pause
    elif job.state not in JOB_RUNNABLE:
        raise JobConflict(f"job {job_id} is {job.state}; only a paused job can be resumed")
    return job


def _forget_hints(conn: Connection, job_id: JobId) -> None:
    """queued -> ready: a hint that came while the job was paused was dropped, so that a new one has to be sent."""
    conn.execute(
        update(shards)
        .where(shards.c.job_id == job_id, shards.c.state == ShardState.QUEUED)
        .values(state=ShardState.READY)
    )


# --- what was asked at submit: an end before the last row -----------------------------------------------------------


def due(conn: Connection) -> list[JobId]:
    """Jobs whose deadline has passed or that fail too often."""
    rows = conn.scalars(
        select(jobs.c.id)
        .where(
            or_(
                and_(jobs.c.state.in_([JobState.VALIDATING, *_PLANNED]), _LATE),
                and_(jobs.c.state.in_(_PLANNED), _fails_too_often()),
            )
        )
        .order_by(jobs.c.id)
    )
    return [JobId(found) for found in rows]


def stop(conn: Connection, job_id: JobId) -> Job | None:
    """One of those that are due -> expiring or failing; from validating straight to expired. None: not due any more."""
    late = _move(conn, job_id, JobState.EXPIRING, _LATE)
    if late or _move(conn, job_id, JobState.FAILING, _fails_too_often()):
        cancel_shards(conn, job_id, SHARD_WAITING)
        job = get(conn, job_id)
        why = _deadline(job) if late else too_many_errors(job)
        conn.execute(update(jobs).where(jobs.c.id == job_id).values(error=why))
        return get(conn, job_id)
    unplanned = update(jobs).where(jobs.c.id == job_id, jobs.c.state == JobState.VALIDATING, _LATE)
    if conn.execute(unplanned.values(lease_owner=None, lease_until=0)).rowcount == 1:
        return end(conn, job_id, JobState.EXPIRED, error=_deadline(get(conn, job_id)))
    return None


def _move(conn: Connection, job_id: JobId, state: JobState, condition: ColumnElement[bool]) -> bool:
    moved = conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state.in_(_PLANNED), condition)
        .values(state=state, lease_owner=None, lease_until=0)
    )
    return moved.rowcount == 1


def _deadline(job: Job) -> str:
    assert job.deadline is not None, f"job {job.id} expired without a deadline"
    return (
        f"deadline: {job.deadline:%Y-%m-%d %H:%M:%S} UTC has passed with {job.rows_done} of {job.rows_total} rows done"
    )
