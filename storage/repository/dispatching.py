"""ready -> queued: which shards get a hint in the queue now."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, case, func, select, update

from storage.database import lock, now
from storage.records import Hint, JobId, ShardId
from storage.repository.suspects import crashed_alone, is_suspect
from storage.states import JOB_RUNNABLE, SHARD_WAITING, ShardState
from storage.tables import jobs, shards

_DISPATCH_LOCK = 0x6E6D_0001
# suspected shards come last: they need a worker for themselves, and may kill it
_ORDER = (case((is_suspect, 1), else_=0), shards.c.priority.desc(), shards.c.job_id, shards.c.row_lo)


def dispatch(conn: Connection, model_key: str | None, window: int, stale_seconds: float) -> list[Hint]:
    """Two dispatchers take turns, so that `window` holds for both together."""
    lock(conn, _DISPATCH_LOCK)
    stale = _queue(conn, _candidates(model_key).where(*_is_stale(stale_seconds)))
    fresh: list[int] = []
    for key, free in _free_places(conn, model_key, window):
        ready = _candidates(key).where(shards.c.state == ShardState.READY, shards.c.not_before <= now())
        fresh += _queue(conn, ready.order_by(*_ORDER).limit(free))
    return _hints(conn, stale + fresh)


def _candidates(model_key: str | None) -> Any:
    query = (
        select(shards.c.id)
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(jobs.c.state.in_(JOB_RUNNABLE), ~crashed_alone)
        .with_for_update(of=shards, skip_locked=True)  # whoever holds it is moving it
    )
    return query if model_key is None else query.where(jobs.c.model_key == model_key)


def _is_stale(stale_seconds: float) -> tuple[ColumnElement[bool], ...]:
    return shards.c.state == ShardState.QUEUED, shards.c.dispatched_at < now() - stale_seconds


def _free_places(conn: Connection, model_key: str | None, window: int) -> list[tuple[str, int]]:
    num_queued = func.sum(case((shards.c.state == ShardState.QUEUED, 1), else_=0))
    query = (
        select(jobs.c.model_key, num_queued)
        .join(shards, shards.c.job_id == jobs.c.id)
        .where(jobs.c.state.in_(JOB_RUNNABLE), shards.c.state.in_(SHARD_WAITING))
        .group_by(jobs.c.model_key)
        .having(num_queued < window)
        .order_by(func.min(jobs.c.id))
    )
    if model_key is not None:
        query = query.where(jobs.c.model_key == model_key)
    return [(key, window - int(queued)) for key, queued in conn.execute(query)]


def _queue(conn: Connection, candidates: Any) -> list[int]:
    ids = list(conn.scalars(candidates))
    if not ids:
        return []
    moved = conn.execute(
        update(shards)
        .where(shards.c.id.in_(ids), shards.c.state.in_(SHARD_WAITING))
        .values(state=ShardState.QUEUED, dispatch_seq=shards.c.dispatch_seq + 1, dispatched_at=now())
        .returning(shards.c.id)
    )
    return list(moved.scalars())


def _hints(conn: Connection, ids: list[int]) -> list[Hint]:
    rows = conn.execute(
        select(
            shards.c.id,
            shards.c.job_id,
            shards.c.dispatch_seq,
            jobs.c.model_key,
            jobs.c.model_source,
            is_suspect.label("is_suspect"),
        )
        .join(jobs, jobs.c.id == shards.c.job_id)
        .where(shards.c.id.in_(ids))
        .order_by(*_ORDER)
    )
    return [
        Hint(
            job_id=JobId(row.job_id),
            shard_id=ShardId(row.id),
            dispatch_seq=row.dispatch_seq,
            model_key=row.model_key,
            model_source=row.model_source,
            alone=row.is_suspect,
        )
        for row in rows
    ]
