"""Files that are not what was recorded: their rows are owed again, and what was counted for them is taken back.

What an attempt sealed is dropped as a whole, since its counters were added up over its segments.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update

from storage.records import Damage, Job, JobId, ShardId
from storage.repository.jobs import fenced as job_fenced
from storage.repository.jobs import lock_job_of, locked
from storage.repository.rows import as_job
from storage.repository.segments import SCALARS
from storage.repository.shards import fenced
from storage.repository.splitting import add_parts
from storage.repository.suspects import crashes_before_the_last
from storage.states import JOB_STOPPING, JobState, Outcome, RowStatus, ShardState
from storage.tables import attempts, cache_limits, cache_stats, dead_rows, jobs, shard_segments, shards

_MAY_DROP = (ShardState.RUNNING, ShardState.READY)
_NO_FILE = {"out_key": None, "out_sha256": None, "out_rows": None}


def drop_segments(conn: Connection, shard_id: ShardId, epoch: int, lost: Collection[int], error: str) -> int:
    """How many rows are owed again."""
    job = lock_job_of(conn, shard_id)
    marked = conn.execute(
        update(shards)
        .where(shards.c.id == shard_id, shards.c.epoch == epoch, shards.c.state.in_(_MAY_DROP))
        .values(error=error)
    )
    if marked.rowcount != 1:
        raise fenced(conn, shard_id, epoch, "drop segments")
    return _drop(conn, job.id, shard_id, lost)


def reopen(conn: Connection, job_id: JobId, epoch: int, damages: Sequence[Damage]) -> Job:
    job = locked(conn, job_id)
    if job.epoch == epoch and all(_was_reopened(conn, damage, epoch) for damage in damages):
        return as_job(job)  # our own move, whose answer was lost
    if job.epoch != epoch or job.state not in {JobState.FINALIZING, *JOB_STOPPING}:
        raise job_fenced(conn, job_id, epoch, "reopen its shards")

    stops = job.state in JOB_STOPPING or job.cancel_requested_at is not None
    for damage in damages:
        _reopen_shard(conn, job, damage, stops)
    state = job.state
    if state == JobState.FINALIZING:
        state = JobState.CANCELLING if stops else JobState.IN_PROGRESS
    moved = conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.epoch == epoch, jobs.c.state == job.state)
        .values(state=state, finalizing_at=None, lease_owner=None, lease_until=0)
        .returning(jobs)
    )
    return as_job(moved.one())


def _was_reopened(conn: Connection, damage: Damage, epoch: int) -> bool:
    under = select(shards.c.reopened_under).where(shards.c.id == damage.shard_id)
    return bool(conn.execute(under).scalar_one() == epoch)


def _reopen_shard(conn: Connection, job: Row[Any], damage: Damage, stops: bool) -> None:
    row = conn.execute(select(shards).where(shards.c.id == damage.shard_id).with_for_update()).one()
    state = ShardState(row.state)
    if state in (ShardState.DONE, ShardState.DEAD) and not stops:
        state = ShardState.READY
    elif state is ShardState.DONE:
        state = ShardState.CANCELLED
    moved = conn.execute(
        update(shards)
        .where(shards.c.id == row.id, shards.c.epoch == damage.epoch, shards.c.state == row.state)
        .values(
            state=state,
            reopenings=shards.c.reopenings + 1,
            reopened_under=job.epoch,
            error=damage.error,
            not_before=0,
            crashes=crashes_before_the_last if state is ShardState.READY else shards.c.crashes,
            **_NO_FILE,
        )
    )
    if moved.rowcount != 1:
        raise fenced(conn, damage.shard_id, damage.epoch, "be reopened")

    dropped = _drop(conn, job.id, damage.shard_id, damage.attempts)
    match row.state:
        case ShardState.DONE:
            _take_commit_back(conn, row)
        case ShardState.DEAD:
            _bury_again(conn, row, dropped) if stops else _exhume(conn, row)
        case ShardState.SPLIT:
            found = sum(piece.num_outputs for piece in damage.pieces)
            assert found == dropped, f"shard {row.id} has lost {dropped} rows, not {damage.pieces}"
            add_parts(conn, row, damage.pieces, ShardState.CANCELLED if stops else ShardState.READY)
        case other:
            assert other == ShardState.CANCELLED, f"shard {row.id} is {other} while its job is published"
            assert stops, f"shard {row.id} is {other} although its job {job.id} runs on"


def _take_commit_back(conn: Connection, shard: Row[Any]) -> None:
    conn.execute(update(jobs).where(jobs.c.id == shard.job_id).values(shards_done=jobs.c.shards_done - 1))
    taken = conn.execute(
        update(attempts)
        .where(
            attempts.c.shard_id == shard.id,
            attempts.c.epoch == shard.epoch,
            attempts.c.outcome == Outcome.COMMITTED,
        )
        .values(outcome=Outcome.DAMAGED)
    )
    assert taken.rowcount == 1, f"shard {shard.id} is done without a commit"


def _exhume(conn: Connection, shard: Row[Any]) -> None:
    """The rows that were given up are owed again, like those that were lost."""
    removed = delete(dead_rows).where(dead_rows.c.shard_id == shard.id).returning(dead_rows.c.num_outputs)
    back = conn.execute(removed).scalar_one()
    conn.execute(update(jobs).where(jobs.c.id == shard.job_id).values(rows_errored=jobs.c.rows_errored - back))


def _bury_again(conn: Connection, shard: Row[Any], more: int) -> None:
    conn.execute(
        update(dead_rows).where(dead_rows.c.shard_id == shard.id).values(num_outputs=dead_rows.c.num_outputs + more)
    )
    conn.execute(update(jobs).where(jobs.c.id == shard.job_id).values(rows_errored=jobs.c.rows_errored + more))


def _drop(conn: Connection, job_id: int, shard_id: ShardId, lost: Collection[int]) -> int:
    """All that these attempts have sealed, and every counter of it; how many rows. What they computed was wasted."""
    names = ("rows", *(status.value for status in RowStatus))
    theirs = (shard_segments.c.shard_id == shard_id, shard_segments.c.epoch.in_(lost))
    sums = [func.coalesce(func.sum(shard_segments.c[name]), 0).label(name) for name in names]
    found = conn.execute(select(*sums).where(*theirs)).one()._mapping
    conn.execute(delete(shard_segments).where(*theirs))
    counts = {f"rows_{status}": jobs.c[f"rows_{status}"] - int(found[status]) for status in RowStatus}
    conn.execute(update(jobs).where(jobs.c.id == job_id).values(counts))
    spent = attempts.c.computed_tokens + attempts.c.forked_tokens + attempts.c.completion_tokens
    conn.execute(
        update(attempts)
        .where(attempts.c.shard_id == shard_id, attempts.c.epoch.in_(lost))
        .values(dict.fromkeys(SCALARS, 0) | {"wasted_tokens": attempts.c.wasted_tokens + spent})
    )
    for table in (cache_stats, cache_limits):
        conn.execute(delete(table).where(table.c.shard_id == shard_id, table.c.epoch.in_(lost)))
    return int(found["rows"])
