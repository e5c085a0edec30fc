"""Moves that somebody asks of a job after it was submitted. Each function runs inside its caller's transaction."""

from __future__ import annotations

from sqlalchemy import Connection, case, select, update

from storage.database import now
from storage.errors import JobConflict
from storage.records import Job, JobId
from storage.repository.jobs import fenced, get
from storage.repository.rows import as_job
from storage.states import JOB_RUNNABLE, JobState, ShardState
from storage.tables import jobs, shards


def release(conn: Connection, job_id: JobId, epoch: int) -> None:
    """The right to plan goes back: anybody may take it at once."""
    released = conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.epoch == epoch, jobs.c.state == JobState.VALIDATING)
        .values(lease_owner=None, lease_until=0)
    )
    if released.rowcount != 1:
        raise fenced(conn, job_id, epoch, "release it")


def unplanned(conn: Connection, idle_seconds: float) -> list[Job]:
    """Oldest first. A job so young that its submit may not have come to claim it is left alone."""
    rows = conn.execute(
        select(jobs)
        .where(
            jobs.c.state == JobState.VALIDATING,
            jobs.c.lease_until < now(),
            jobs.c.created_at < now() - idle_seconds,
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
