"""Moves of jobs. Each function runs inside its caller's transaction.

Lock order, everywhere: first the job's row, then its shards' rows, so that no two transactions wait for each other.
The lock leaves the row's key alone (FOR NO KEY UPDATE): a claim, which holds its shard, may insert rows that refer to
the job meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, exists, func, insert, select, update

from storage.database import now
from storage.errors import Fenced, NoSuchJob
from storage.records import Job, JobId, NewJob, ShardId
from storage.repository.rows import as_job
from storage.states import (
    JOB_FINAL,
    JOB_RUNNABLE,
    JOB_STOPPING,
    SHARD_OPEN,
    SHARD_WAITING,
    JobState,
    Outcome,
    ShardState,
)
from storage.tables import attempts, dead_rows, jobs, shards

LEASED = (JobState.VALIDATING, JobState.FINALIZING, *JOB_STOPPING)  # states in which one process has work to do

_ENDS = {
    JobState.CANCELLING: JobState.CANCELLED,
    JobState.EXPIRING: JobState.EXPIRED,
    JobState.FAILING: JobState.FAILED,
}
_HAS_OPEN_SHARD = exists().where(shards.c.job_id == jobs.c.id, shards.c.state.in_(SHARD_OPEN)).correlate(jobs)
rows_left = jobs.c.rows_total - jobs.c.rows_succeeded - jobs.c.rows_errored - jobs.c.rows_expired - jobs.c.rows_canceled


def create(conn: Connection, new: NewJob) -> Job:
    row = conn.execute(
        insert(jobs)
        .values(
            run_key=new.run_key,
            name=new.name,
            state=JobState.VALIDATING,
            model_source=new.model.source,
            model_revision=new.model.revision,
            model_dtype=new.model.dtype,
            model_key=new.model.key,
            input_uri=new.input_uri,
            input_fingerprint=new.input_fingerprint,
            output_uri=new.output_uri,
            spec=new.spec,
            spec_hash=new.spec_hash,
            options=new.options,
            tags=new.tags,
            max_shard_attempts=new.max_shard_attempts,
            max_error_rate=new.max_error_rate,
            deadline_at=new.deadline_at if new.deadline_seconds is None else now() + new.deadline_seconds,
            created_at=now(),
        )
        .returning(jobs)
    ).one()
    return as_job(row)


def get(conn: Connection, job_id: JobId) -> Job:
    return as_job(_row(conn, job_id))


def find(conn: Connection, run_key: str | None, output_uri: str | None) -> Job | None:
    query = select(jobs).where(jobs.c.retired_at.is_(None))
    if run_key is not None:
        query = query.where(jobs.c.run_key == run_key)
    if output_uri is not None:
        query = query.where(jobs.c.output_uri == output_uri)
    row = conn.execute(query.order_by(jobs.c.id.desc()).limit(1)).one_or_none()
    return None if row is None else as_job(row)


def newest(conn: Connection, limit: int) -> list[Job]:
    return [as_job(row) for row in conn.execute(select(jobs).order_by(jobs.c.id.desc()).limit(limit))]


def lock_job_of(conn: Connection, shard_id: ShardId) -> Row[Any]:
    """Take the row lock of a shard's job before its shard is touched; the job's row. Raises Fenced if there is none."""
    row = conn.execute(
        select(jobs)
        .join(shards, shards.c.job_id == jobs.c.id)
        .where(shards.c.id == shard_id)
        .with_for_update(of=jobs, key_share=True)
    ).one_or_none()
    if row is None:
        raise Fenced(f"there is no shard {shard_id}; its hint is stale or forged")
    return row


# --- the right to plan or publish -----------------------------------------------------------------------------------


def claim(conn: Connection, job_id: JobId, owner: str, lease_seconds: float) -> int | None:
    return conn.execute(
        update(jobs)
        .where(
            jobs.c.id == job_id,
            jobs.c.state.in_(LEASED),
            jobs.c.lease_until < now(),
            ~_HAS_OPEN_SHARD,
        )
        .values(epoch=jobs.c.epoch + 1, lease_owner=owner, lease_until=now() + lease_seconds)
        .returning(jobs.c.epoch)
    ).scalar_one_or_none()


def renew(conn: Connection, job_id: JobId, epoch: int, lease_seconds: float) -> None:
    renewed = conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.epoch == epoch, jobs.c.state.in_(LEASED))
        .values(lease_until=now() + lease_seconds)
    )
    if renewed.rowcount != 1:
        raise fenced(conn, job_id, epoch, "renew its lease")


# --- ends -----------------------------------------------------------------------------------------------------------


def advance(conn: Connection) -> list[Job]:
    """Runnable jobs without an open shard -> finalizing; then every job that waits for a finaliser."""
    conn.execute(
        update(jobs)
        .where(jobs.c.state.in_(JOB_RUNNABLE), ~_HAS_OPEN_SHARD)
        .values(state=JobState.FINALIZING, finalizing_at=now(), lease_owner=None, lease_until=0)
    )
    rows = conn.execute(
        select(jobs)
        .where(jobs.c.state.in_([JobState.FINALIZING, *JOB_STOPPING]), jobs.c.lease_until < now(), ~_HAS_OPEN_SHARD)
        .order_by(jobs.c.id)
    )
    return [as_job(row) for row in rows]


def finalize_if_last(conn: Connection, job_id: JobId) -> None:
    """in_progress -> finalizing once no shard is open. The caller holds the job's row lock."""
    conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state == JobState.IN_PROGRESS, ~_HAS_OPEN_SHARD)
        .values(state=JobState.FINALIZING, finalizing_at=now())
    )


def complete(conn: Connection, job_id: JobId, epoch: int, manifest_sha256: str, cause: str | None) -> Job:
    row = locked(conn, job_id)
    if row.epoch == epoch and row.state in JOB_FINAL and row.manifest_sha256 == manifest_sha256:
        return as_job(row)  # our own commit, whose answer was lost
    if row.epoch != epoch or row.state not in {JobState.FINALIZING, *JOB_STOPPING}:
        raise fenced(conn, job_id, epoch, "complete it")

    error = row.error
    if row.state in JOB_STOPPING:
        state = _ENDS[row.state]
    elif row.rows_succeeded == 0 and row.rows_total > 0:
        state = JobState.FAILED
        error = f"none of {row.rows_total} rows succeeded: {cause or _commonest_cause(conn, job_id)}"
    elif row.max_error_rate is not None and row.rows_errored > row.max_error_rate * row.rows_total:
        state = JobState.FAILED  # it was over before anybody looked
        error = too_many_errors(as_job(row))
    else:
        state = JobState.COMPLETED
    return end(conn, job_id, state, error=error, manifest_sha256=manifest_sha256)


def fail(conn: Connection, job_id: JobId, epoch: int | None, error: str) -> bool:
    """False if it had ended before."""
    row = locked(conn, job_id)
    if epoch is not None and row.epoch != epoch:
        raise fenced(conn, job_id, epoch, "fail it")
    if row.state in JOB_FINAL:
        return False
    cancel_shards(conn, job_id, SHARD_OPEN)
    end(conn, job_id, JobState.FAILED, error=error)
    return True


def request_cancel(conn: Connection, job_id: JobId, at_once: bool) -> Job:
    row = locked(conn, job_id)
    if at_once and row.state not in JOB_FINAL and row.abort_requested_at is None:
        conn.execute(update(jobs).where(jobs.c.id == job_id).values(abort_requested_at=now()))
    if row.state in JOB_FINAL | JOB_STOPPING or row.cancel_requested_at is not None:
        return get(conn, job_id)
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested_at=now()))
    if row.state == JobState.VALIDATING:
        return end(conn, job_id, JobState.CANCELLED)  # nothing to publish
    if row.state != JobState.FINALIZING:  # then all its rows have ended: it completes
        cancel_shards(conn, job_id, SHARD_WAITING)
        conn.execute(
            update(jobs).where(jobs.c.id == job_id).values(state=JobState.CANCELLING, lease_owner=None, lease_until=0)
        )
    return get(conn, job_id)


def retire(conn: Connection, job_id: JobId) -> bool:
    retired = conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.state.in_(JOB_FINAL), jobs.c.retired_at.is_(None))
        .values(retired_at=now())
    )
    return retired.rowcount == 1


# --- below ----------------------------------------------------------------------------------------------------------


def _row(conn: Connection, job_id: JobId, *, for_update: bool = False) -> Row[Any]:
    query = select(jobs).where(jobs.c.id == job_id)
    row = conn.execute(query.with_for_update(key_share=True) if for_update else query).one_or_none()
    if row is None:
        raise NoSuchJob(f"there is no job {job_id}; `nightmill list` shows all")
    return row


def locked(conn: Connection, job_id: JobId) -> Row[Any]:
    return _row(conn, job_id, for_update=True)


def fenced(conn: Connection, job_id: JobId, epoch: int, wish: str) -> Fenced:
    row = _row(conn, job_id)
    return Fenced(f"job {job_id} is {row.state} under epoch {row.epoch}; epoch {epoch} may not {wish}")


def end(
    conn: Connection, job_id: JobId, state: JobState, *, error: str | None = None, manifest_sha256: str | None = None
) -> Job:
    """Rows that have not ended become canceled or expired, so that the counts of an ended job add up. With a manifest
    the present generation is the published one; without, the one before it stays."""
    published = {"manifest_sha256": manifest_sha256, "published_generation": jobs.c.generation}
    left = jobs.c.rows_expired if state == JobState.EXPIRED else jobs.c.rows_canceled
    row = conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id)
        .values(
            state=state,
            error=error,
            finished_at=now(),
            lease_owner=None,
            lease_until=0,
            **(published if manifest_sha256 is not None else {}),
            **{left.name: left + rows_left},
        )
        .returning(jobs)
    ).one()
    return as_job(row)


def cancel_shards(conn: Connection, job_id: JobId, states: Iterable[ShardState]) -> None:
    conn.execute(
        update(attempts)
        .where(
            attempts.c.job_id == job_id,
            attempts.c.outcome.is_(None),
            attempts.c.shard_id.in_(select(shards.c.id).where(shards.c.job_id == job_id, shards.c.state.in_(states))),
        )
        .values(outcome=Outcome.CANCELLED, ended_at=now())
    )
    conn.execute(
        update(shards)
        .where(shards.c.job_id == job_id, shards.c.state.in_(states))
        .values(state=ShardState.CANCELLED, lease_owner=None, lease_until=0)
    )


def too_many_errors(job: Job) -> str:
    return (
        f"max_error_rate: {job.rows_errored} of {job.rows_done} rows that have ended failed ({job.rows_total} in all);"
        f" --max-error-rate {job.max_error_rate:g} allows less"
    )


def _commonest_cause(conn: Connection, job_id: JobId) -> str:
    row = conn.execute(
        select(dead_rows.c.reason, func.max(dead_rows.c.detail).label("detail"))
        .where(dead_rows.c.job_id == job_id)
        .group_by(dead_rows.c.reason)
        .order_by(func.sum(dead_rows.c.num_outputs).desc())
        .limit(1)
    ).one_or_none()
    if row is None:
        return "see the error columns of its output"
    return f"{row.reason} ({row.detail})" if row.detail else str(row.reason)
