"""What a job's rows cost: sums over its attempts' sealed segments."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, and_, case, func, select

from storage.records import GroupStats, JobId, RunStats
from storage.repository.segments import GROUP_COUNTERS, SCALARS
from storage.tables import attempts, cache_limits, cache_stats, shards


def of_job(conn: Connection, job_id: JobId, generation: int | None) -> RunStats:
    """`generation` None: of all."""
    mine = select(shards.c.id).where(shards.c.job_id == job_id)
    if generation is not None:
        mine = mine.where(shards.c.generation == generation)
    sums = [func.coalesce(func.sum(attempts.c[name]), 0).label(name) for name in SCALARS]
    row = conn.execute(select(*sums).where(attempts.c.job_id == job_id, attempts.c.shard_id.in_(mine))).one()
    counts: dict[str, Any] = {name: int(row._mapping[name]) for name in SCALARS if name != "engine_seconds"}
    return RunStats(
        **counts,
        engine_seconds=float(row.engine_seconds),
        limited_by=_limits(conn, job_id, mine),
        groups=_groups(conn, job_id, mine),
    )


def _limits(conn: Connection, job_id: JobId, mine: Select[Any]) -> tuple[tuple[str, int], ...]:
    rows = conn.execute(
        select(cache_limits.c.name, func.sum(cache_limits.c.tokens).label("tokens"))
        .where(cache_limits.c.job_id == job_id, cache_limits.c.shard_id.in_(mine))
        .group_by(cache_limits.c.name)
    )
    return tuple(sorted((row.name, int(row.tokens)) for row in rows))  # not by the database: it may order by locale


def _groups(conn: Connection, job_id: JobId, mine: Select[Any]) -> tuple[GroupStats, ...]:
    """The mean is weighted by the engine's seconds; attempts that measured none count as nothing."""
    shape = (
        cache_stats.c.group_index,
        cache_stats.c.kind,
        cache_stats.c.layers,
        cache_stats.c.block_size,
        cache_stats.c.window,
    )
    seconds = case((cache_stats.c.blocks_mean > 0, attempts.c.engine_seconds), else_=0.0)
    rows = conn.execute(
        select(
            *shape,
            *(func.sum(cache_stats.c[name]).label(name) for name in GROUP_COUNTERS),
            func.max(cache_stats.c.blocks_peak).label("peak"),
            func.sum(cache_stats.c.blocks_mean * seconds).label("weighted"),
            func.sum(seconds).label("seconds"),
            func.max(cache_stats.c.blocks_mean).label("highest_mean"),
        )
        .join(attempts, and_(attempts.c.shard_id == cache_stats.c.shard_id, attempts.c.epoch == cache_stats.c.epoch))
        .where(cache_stats.c.job_id == job_id, cache_stats.c.shard_id.in_(mine))
        .group_by(*shape)
        .order_by(*shape)
    )
    return tuple(
        GroupStats(
            index=row.group_index,
            kind=row.kind,
            layers=row.layers,
            block_size=row.block_size,
            window=row.window,
            **{name: int(row._mapping[name]) for name in GROUP_COUNTERS},
            blocks_peak=row.peak,
            blocks_mean=row.weighted / row.seconds if row.seconds else row.highest_mean,
        )
        for row in rows
    )
