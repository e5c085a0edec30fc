"""Moves that somebody asks of a job after it was submitted. Each function runs inside its caller's transaction."""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from storage.database import now
from storage.records import Job, JobId
from storage.repository.jobs import fenced
from storage.repository.rows import as_job
from storage.states import JobState
from storage.tables import jobs


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
