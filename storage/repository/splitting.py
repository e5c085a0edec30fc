"""ready -> split or dead: what becomes of a shard whose worker died while it ran nothing else; and of its job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from storage.records import JobId, Piece, Shard, ShardId
from storage.repository.jobs import cancel_shards, finalize_if_last, lock_job_of
from storage.repository.rows import as_shard
from storage.repository.shards import bury, sealed_rows
from storage.repository.suspects import ENGINE_KILLER, crashed_alone
from storage.states import JOB_RUNNABLE, SHARD_WAITING, JobState, ShardState
from storage.tables import jobs, shards

_MUST_BE_DIVIDED = (shards.c.state == ShardState.READY, crashed_alone)


def crashed(conn: Connection) -> list[Shard]:
    rows = conn.execute(
        select(shards)
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(*_MUST_BE_DIVIDED, jobs.c.state.in_(JOB_RUNNABLE))
        .order_by(shards.c.id)
    )
    return [as_shard(row) for row in rows]


def split(conn: Connection, shard_id: ShardId, epoch: int, pieces: Sequence[Piece]) -> bool:
    """False if another was faster."""
    job = lock_job_of(conn, shard_id)
    row = _end_crashed(conn, shard_id, epoch, ShardState.SPLIT)
    if row is None:
        return False

    parent = as_shard(row)
    left = parent.num_outputs - sealed_rows(conn, shard_id)
    assert sum(piece.num_outputs for piece in pieces) == left, f"shard {shard_id} has {left} rows left, not {pieces}"
    add_parts(conn, row, pieces, ShardState.READY)
    conn.execute(update(jobs).where(jobs.c.id == job.id).values(shards_total=jobs.c.shards_total - 1))
    finalize_if_last(conn, JobId(job.id))
    return True


def add_parts(conn: Connection, row: Row[Any], pieces: Sequence[Piece], state: ShardState) -> None:
    """Shards of their own for rows of this one, which is split. The caller holds the job's row lock."""
    parent = as_shard(row)
    highest = conn.execute(select(func.max(shards.c.idx)).where(shards.c.job_id == parent.job_id)).scalar_one()
    for number, piece in enumerate(pieces, start=1):
        assert parent.row_lo <= piece.row_lo < piece.row_hi <= parent.row_hi, f"shard {parent.id} has no {piece}"
        conn.execute(
            insert(shards).values(
                job_id=parent.job_id,
                idx=highest + number,
                row_lo=piece.row_lo,
                row_hi=piece.row_hi,
                num_outputs=piece.num_outputs,
                cost_tokens=parent.cost_tokens * piece.num_outputs // parent.num_outputs,
                parent_id=parent.id,
                plan_idx=parent.row_group,
                generation=parent.generation,
                priority=row.priority,
                state=state,
            )
        )
    more = jobs.c.shards_total + len(pieces)
    conn.execute(update(jobs).where(jobs.c.id == parent.job_id).values(shards_total=more))


def give_up(conn: Connection, shard_id: ShardId, epoch: int) -> bool:
    """False if another was faster."""
    job = lock_job_of(conn, shard_id)
    row = _end_crashed(conn, shard_id, epoch, ShardState.DEAD)
    if row is None:
        return False
    bury(conn, row, ENGINE_KILLER, row.error or "its worker was lost")
    finalize_if_last(conn, JobId(job.id))
    return True


def _end_crashed(conn: Connection, shard_id: ShardId, epoch: int, state: ShardState) -> Row[Any] | None:
    """None if it has moved since it crashed under this epoch."""
    return conn.execute(
        update(shards)
        .where(shards.c.id == shard_id, shards.c.epoch == epoch, *_MUST_BE_DIVIDED)
        .values(state=state)
        .returning(shards)
    ).one_or_none()


def abandon(conn: Connection, max_crashes: int) -> list[JobId]:
    """Jobs that cost so many workers or more -> failing, so that their finished rows are published; then failed."""
    spent = conn.execute(
        select(jobs.c.id, jobs.c.crashes)
        .where(jobs.c.crashes >= max_crashes, jobs.c.state.in_(JOB_RUNNABLE))
        .order_by(jobs.c.id)
        .with_for_update(key_share=True)
    )
    ended = []
    for job_id, crashes in spent.all():
        error = (
            f"workers died {crashes} times while they ran it, which is all that max_job_crashes allows;"
            " its finished rows are published, and the log of a worker says what it died of"
        )
        cancel_shards(conn, job_id, SHARD_WAITING)
        conn.execute(
            update(jobs)
            .where(jobs.c.id == job_id)
            .values(state=JobState.FAILING, error=error, lease_owner=None, lease_until=0)
        )
        ended.append(JobId(job_id))
    return ended
