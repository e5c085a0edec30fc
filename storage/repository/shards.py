"""Moves of shards: claim, heartbeat, release, expire. Each function runs inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, and_, case, exists, func, insert, or_, select, tuple_, update

from storage.database import now
from storage.errors import Fenced
from storage.records import Beat, Claim, JobId, Shard, ShardId
from storage.repository.jobs import finalize_if_last, get, lock_job_of
from storage.repository.rows import as_shard
from storage.states import JOB_RUNNABLE, SHARD_WAITING, JobState, Outcome, ShardState
from storage.tables import attempts, dead_rows, jobs, shard_segments, shards

ENGINE_KILLER = "engine_killer"  # error codes of rows that were given up
INTERNAL = "internal"

_IS_RUNNING = shards.c.state == ShardState.RUNNING
_LEASE_IS_OVER = and_(_IS_RUNNING, shards.c.lease_until < now())
_MAY_START = and_(shards.c.state.in_(SHARD_WAITING), shards.c.not_before <= now())
_MAX_ATTEMPTS = select(jobs.c.max_shard_attempts).where(jobs.c.id == shards.c.job_id).scalar_subquery()
# a lease that ran out may be taken over unless this crash is the last one: giving up is the reconciler's move
_MAY_TAKE_OVER = and_(_LEASE_IS_OVER, shards.c.crashes + 1 < _MAX_ATTEMPTS)
_JOB_RUNS = exists().where(jobs.c.id == shards.c.job_id, jobs.c.state.in_(JOB_RUNNABLE))


def of_job(conn: Connection, job_id: JobId) -> list[Shard]:
    rows = conn.execute(select(shards).where(shards.c.job_id == job_id).order_by(shards.c.idx))
    return [as_shard(row) for row in rows]


# --- ready, queued, running with an expired lease -> running -----------------------------------------------------


def claim(conn: Connection, shard_id: ShardId, owner: str, lease_seconds: float) -> Claim | None:
    seen = conn.execute(
        select(jobs.c.state, jobs.c.id).join(shards, shards.c.job_id == jobs.c.id).where(shards.c.id == shard_id)
    ).one_or_none()
    if seen is None:
        return None
    if seen.state == JobState.QUEUED:
        lock_job_of(conn, shard_id)  # it will change, so it comes first

    row = conn.execute(
        update(shards)
        .where(shards.c.id == shard_id, or_(_MAY_START, _MAY_TAKE_OVER), _JOB_RUNS)
        .values(
            state=ShardState.RUNNING,
            epoch=shards.c.epoch + 1,
            attempts=shards.c.attempts + 1,
            crashes=shards.c.crashes + case((_IS_RUNNING, 1), else_=0),
            lease_owner=owner,
            lease_until=now() + lease_seconds,
        )
        .returning(shards)
    ).one_or_none()
    if row is None:
        return None

    end_attempt(conn, shard_id, row.epoch - 1, Outcome.CRASHED)  # of the lease that was taken over, if any
    conn.execute(
        insert(attempts).values(shard_id=shard_id, epoch=row.epoch, job_id=row.job_id, owner=owner, started_at=now())
    )
    conn.execute(
        update(jobs)
        .where(jobs.c.id == row.job_id, jobs.c.state == JobState.QUEUED)
        .values(state=JobState.IN_PROGRESS, started_at=func.coalesce(jobs.c.started_at, now()))
    )
    return Claim(shard=as_shard(row), job=get(conn, JobId(row.job_id)))


# --- running -> running ---------------------------------------------------------------------------------------------


def heartbeat(conn: Connection, owner: str, held: Collection[tuple[ShardId, int]], lease_seconds: float) -> Beat:
    if not held:
        return Beat(held=frozenset(), cancelled=frozenset())
    renewed = conn.execute(
        update(shards)
        .where(
            tuple_(shards.c.id, shards.c.epoch).in_(sorted(held)),
            shards.c.state == ShardState.RUNNING,
            shards.c.lease_owner == owner,
        )
        .values(lease_until=now() + lease_seconds)
        .returning(shards.c.id)
    )
    ids = list(renewed.scalars())
    unwanted = conn.execute(
        select(shards.c.id, jobs.c.state, jobs.c.abort_requested_at)
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(shards.c.id.in_(ids), jobs.c.state.not_in(JOB_RUNNABLE))
    ).all()
    paused = frozenset(ShardId(row.id) for row in unwanted if row.state == JobState.PAUSED)
    at_once = (row for row in unwanted if row.state != JobState.CANCELLING or row.abort_requested_at is not None)
    return Beat(
        held=frozenset(map(ShardId, ids)),
        cancelled=frozenset(ShardId(row.id) for row in unwanted) - paused,
        aborted=frozenset(ShardId(row.id) for row in at_once) - paused,
        paused=paused,
    )


# --- running -> ready, dead, cancelled --------------------------------------------------------------------------


def release(
    conn: Connection,
    shard_id: ShardId,
    epoch: int,
    *,
    reason: str,
    preempted: bool,
    delay_seconds: float,
    wasted_tokens: int,
) -> ShardState:
    job = lock_job_of(conn, shard_id)
    row = conn.execute(select(shards).where(shards.c.id == shard_id).with_for_update()).one()
    if row.epoch != epoch or row.state != ShardState.RUNNING:
        if _outcome(conn, shard_id, epoch) in {Outcome.FAILED, Outcome.PREEMPTED}:
            return ShardState(row.state)  # our own release, whose answer was lost
        raise fenced(conn, shard_id, epoch, "release it")

    outcome = Outcome.PREEMPTED if preempted else Outcome.FAILED
    conn.execute(
        update(attempts)
        .where(attempts.c.shard_id == shard_id, attempts.c.epoch == epoch)
        .values(wasted_tokens=attempts.c.wasted_tokens + wasted_tokens)
    )
    return _end_running(conn, job, row, outcome, reason, job.max_shard_attempts, delay_seconds=delay_seconds)


def overdue(conn: Connection) -> list[ShardId]:
    return [ShardId(found) for found in conn.scalars(select(shards.c.id).where(_LEASE_IS_OVER).order_by(shards.c.id))]


def expire(conn: Connection, shard_id: ShardId, max_attempts: int) -> Shard | None:
    """One shard whose lease ran out; None if another was faster."""
    job = lock_job_of(conn, shard_id)
    row = conn.execute(select(shards).where(shards.c.id == shard_id, _LEASE_IS_OVER).with_for_update()).one_or_none()
    if row is None:
        return None
    reason = f"worker {row.lease_owner} was lost in attempt {row.attempts}"
    _end_running(conn, job, row, Outcome.CRASHED, reason, min(max_attempts, job.max_shard_attempts))
    return as_shard(conn.execute(select(shards).where(shards.c.id == shard_id)).one())


def _end_running(
    conn: Connection,
    job: Row[Any],
    shard: Row[Any],
    outcome: Outcome,
    reason: str,
    max_attempts: int,
    *,
    delay_seconds: float = 0.0,
) -> ShardState:
    """running -> cancelled if its job is, else dead if its crashes are spent, else ready. Both rows are locked."""
    crashes = shard.crashes + int(outcome != Outcome.PREEMPTED)
    if job.state not in JOB_RUNNABLE | {JobState.PAUSED}:
        state = ShardState.CANCELLED
    elif outcome != Outcome.PREEMPTED and crashes >= max_attempts:
        state = ShardState.DEAD
    else:
        state = ShardState.READY

    moved = conn.execute(
        update(shards)
        .where(shards.c.id == shard.id, shards.c.epoch == shard.epoch, shards.c.state == ShardState.RUNNING)
        .values(
            state=state,
            crashes=crashes,
            preemptions=shards.c.preemptions + int(outcome == Outcome.PREEMPTED),
            lease_owner=None,
            lease_until=0,
            not_before=now() + delay_seconds if delay_seconds else 0,  # at once, also if the clock jumps back
            error=reason,
        )
    )
    assert moved.rowcount == 1, f"shard {shard.id} moved although its row was locked"
    end_attempt(conn, shard.id, shard.epoch, outcome)
    if state == ShardState.DEAD:
        _bury(conn, shard, ENGINE_KILLER if outcome == Outcome.CRASHED else INTERNAL, reason)
    finalize_if_last(conn, JobId(job.id))
    return state


def _bury(conn: Connection, shard: Row[Any], reason: str, detail: str) -> None:
    """Rows of the shard that no segment holds end as errored rows."""
    sealed = conn.execute(
        select(func.coalesce(func.sum(shard_segments.c.rows), 0)).where(shard_segments.c.shard_id == shard.id)
    ).scalar_one()
    num_outputs = shard.num_outputs - int(sealed)
    conn.execute(
        insert(dead_rows).values(
            shard_id=shard.id,
            job_id=shard.job_id,
            row_lo=shard.row_lo,
            row_hi=shard.row_hi,
            num_outputs=num_outputs,
            reason=reason,
            detail=detail,
        )
    )
    conn.execute(update(jobs).where(jobs.c.id == shard.job_id).values(rows_errored=jobs.c.rows_errored + num_outputs))


def buried(conn: Connection, job_id: JobId) -> list[tuple[int, int, str]]:
    rows = conn.execute(select(dead_rows).where(dead_rows.c.job_id == job_id).order_by(dead_rows.c.row_lo))
    return [(row.row_lo, row.row_hi, row.reason) for row in rows]


# --- shared with segments -----------------------------------------------------------------------------------------


def end_attempt(conn: Connection, shard_id: int, epoch: int, outcome: Outcome) -> None:
    conn.execute(
        update(attempts)
        .where(attempts.c.shard_id == shard_id, attempts.c.epoch == epoch, attempts.c.outcome.is_(None))
        .values(outcome=outcome, ended_at=now())
    )


def fenced(conn: Connection, shard_id: ShardId, epoch: int, wish: str) -> Fenced:
    row = conn.execute(select(shards.c.state, shards.c.epoch).where(shards.c.id == shard_id)).one()
    return Fenced(f"shard {shard_id} is {row.state} under epoch {row.epoch}; epoch {epoch} may not {wish}")


def _outcome(conn: Connection, shard_id: ShardId, epoch: int) -> str | None:
    return conn.execute(
        select(attempts.c.outcome).where(attempts.c.shard_id == shard_id, attempts.c.epoch == epoch)
    ).scalar_one_or_none()
