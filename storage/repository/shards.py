"""Moves of shards: claim, heartbeat, release, expire. Each function runs inside its caller's transaction."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Row, and_, case, exists, func, insert, select, true, tuple_, update

from storage.database import now
from storage.errors import Fenced
from storage.records import Beat, Claim, JobId, Shard, ShardId
from storage.repository.jobs import finalize_if_last, get, lock_job_of
from storage.repository.rows import as_shard
from storage.repository.suspects import count_death, crashed_alone, is_suspect, may_crash_once_more
from storage.states import JOB_RUNNABLE, SHARD_WAITING, JobState, Outcome, ShardState
from storage.tables import attempts, dead_rows, jobs, shard_segments, shards

INTERNAL = "internal"  # the error code of rows whose shard failed too often

_IS_RUNNING = shards.c.state == ShardState.RUNNING
_LEASE_IS_OVER = and_(_IS_RUNNING, shards.c.lease_until < now())
_MAY_START = and_(shards.c.state.in_(SHARD_WAITING), shards.c.not_before <= now(), ~crashed_alone)
# a lease that ran out may be taken over unless this crash makes the shard suspected: that is the reconciler's move
_MAY_TAKE_OVER = and_(_LEASE_IS_OVER, may_crash_once_more)
_JOB_RUNS = exists().where(jobs.c.id == shards.c.job_id, jobs.c.state.in_(JOB_RUNNABLE))


def of_job(conn: Connection, job_id: JobId) -> list[Shard]:
    rows = conn.execute(
        select(shards).where(shards.c.job_id == job_id).order_by(shards.c.generation, shards.c.row_lo, shards.c.id)
    )
    return [as_shard(row) for row in rows]


# --- ready, queued, running with an expired lease -> running -----------------------------------------------------


def claim(
    conn: Connection, shard_id: ShardId, owner: str, lease_seconds: float, alone: bool, claim_id: str | None
) -> Claim | None:
    seen = conn.execute(
        select(jobs.c.state, shards.c.state == ShardState.RUNNING)
        .join(shards, shards.c.job_id == jobs.c.id)
        .where(shards.c.id == shard_id)
    ).one_or_none()
    if seen is None:
        return None
    job_state, is_taken_over = seen
    if is_taken_over and claim_id is not None:
        ours = _claimed_before(conn, shard_id, claim_id, lease_seconds)
        if ours is not None:
            return ours
    if job_state == JobState.QUEUED or is_taken_over:
        lock_job_of(conn, shard_id)  # it will change, so it comes first

    row = conn.execute(
        update(shards)
        .where(
            shards.c.id == shard_id,
            _MAY_TAKE_OVER if is_taken_over else _MAY_START,
            _JOB_RUNS,
            true() if alone else ~is_suspect,
        )
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

    if is_taken_over:
        count_death(conn, shard_id, row.epoch - 1)
        end_attempt(conn, shard_id, row.epoch - 1, Outcome.CRASHED)
    _begin_attempt(conn, row, claim_id)
    return Claim(shard=as_shard(row), job=get(conn, JobId(row.job_id)))


def _begin_attempt(conn: Connection, shard: Row[Any], claim_id: str | None) -> None:
    """The first one of a job starts the job."""
    conn.execute(
        insert(attempts).values(
            shard_id=shard.id,
            epoch=shard.epoch,
            job_id=shard.job_id,
            owner=shard.lease_owner,
            claim_id=claim_id,
            started_at=now(),
        )
    )
    conn.execute(
        update(jobs)
        .where(jobs.c.id == shard.job_id, jobs.c.state == JobState.QUEUED)
        .values(state=JobState.IN_PROGRESS, started_at=func.coalesce(jobs.c.started_at, now()))
    )


def _claimed_before(conn: Connection, shard_id: ShardId, claim_id: str, lease_seconds: float) -> Claim | None:
    """Our own claim, whose answer was lost, with its lease from now on."""
    attempt = exists().where(
        attempts.c.shard_id == shards.c.id, attempts.c.epoch == shards.c.epoch, attempts.c.claim_id == claim_id
    )
    row = conn.execute(
        update(shards)
        .where(shards.c.id == shard_id, _IS_RUNNING, attempt)
        .values(lease_until=now() + lease_seconds)
        .returning(shards)
    ).one_or_none()
    return None if row is None else Claim(shard=as_shard(row), job=get(conn, JobId(row.job_id)))


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
    outcome: Outcome,
    delay_seconds: float,
    wasted_tokens: int,
) -> ShardState:
    job = lock_job_of(conn, shard_id)
    row = conn.execute(select(shards).where(shards.c.id == shard_id).with_for_update()).one()
    if row.epoch != epoch or row.state != ShardState.RUNNING:
        if _outcome(conn, shard_id, epoch) == outcome:
            return ShardState(row.state)  # our own release, whose answer was lost
        raise fenced(conn, shard_id, epoch, "release it")

    conn.execute(
        update(attempts)
        .where(attempts.c.shard_id == shard_id, attempts.c.epoch == epoch)
        .values(wasted_tokens=attempts.c.wasted_tokens + wasted_tokens)
    )
    return _end_running(conn, job, row, outcome, reason, delay_seconds=delay_seconds)


def overdue(conn: Connection) -> list[ShardId]:
    return [ShardId(found) for found in conn.scalars(select(shards.c.id).where(_LEASE_IS_OVER).order_by(shards.c.id))]


def expire(conn: Connection, shard_id: ShardId) -> Shard | None:
    """One shard whose lease ran out; None if another was faster."""
    job = lock_job_of(conn, shard_id)
    row = conn.execute(select(shards).where(shards.c.id == shard_id, _LEASE_IS_OVER).with_for_update()).one_or_none()
    if row is None:
        return None
    reason = f"worker {row.lease_owner} was lost in attempt {row.attempts}"
    _end_running(conn, job, row, Outcome.CRASHED, reason)
    return as_shard(conn.execute(select(shards).where(shards.c.id == shard_id)).one())


def _end_running(
    conn: Connection,
    job: Row[Any],
    shard: Row[Any],
    outcome: Outcome,
    reason: str,
    *,
    delay_seconds: float = 0.0,
) -> ShardState:
    """running -> cancelled if its job is, else dead if it failed too often, else ready. Both rows are locked."""
    failures = shard.failures + int(outcome == Outcome.FAILED)
    if job.state not in JOB_RUNNABLE | {JobState.PAUSED}:
        state = ShardState.CANCELLED
    elif outcome == Outcome.FAILED and failures >= job.max_shard_attempts:
        state = ShardState.DEAD
    else:
        state = ShardState.READY

    moved = conn.execute(
        update(shards)
        .where(shards.c.id == shard.id, shards.c.epoch == shard.epoch, shards.c.state == ShardState.RUNNING)
        .values(
            state=state,
            crashes=shards.c.crashes + int(outcome == Outcome.CRASHED),
            failures=failures,
            preemptions=shards.c.preemptions + int(outcome == Outcome.PREEMPTED),
            lease_owner=None,
            lease_until=0,
            not_before=now() + delay_seconds if delay_seconds else 0,  # at once, also if the clock jumps back
            error=reason,
        )
    )
    assert moved.rowcount == 1, f"shard {shard.id} moved although its row was locked"
    if outcome == Outcome.CRASHED:
        count_death(conn, shard.id, shard.epoch)
    end_attempt(conn, shard.id, shard.epoch, outcome)
    if state == ShardState.DEAD:
        bury(conn, shard, INTERNAL, reason)
    finalize_if_last(conn, JobId(job.id))
    return state


def sealed_rows(conn: Connection, shard_id: int) -> int:
    """Rows that the shard's own segments hold."""
    rows = func.coalesce(func.sum(shard_segments.c.rows), 0)
    return int(conn.execute(select(rows).where(shard_segments.c.shard_id == shard_id)).scalar_one())


def bury(conn: Connection, shard: Row[Any], reason: str, detail: str) -> None:
    """Rows of the shard that no segment holds end as errored rows."""
    num_outputs = shard.num_outputs - sealed_rows(conn, shard.id)
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
    rows = conn.execute(
        select(dead_rows)
        .join(shards, shards.c.id == dead_rows.c.shard_id)
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(jobs.c.id == job_id, shards.c.generation == jobs.c.generation)
        .order_by(dead_rows.c.row_lo)
    )
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
