"""Finished rows of an attempt: sealed segments, the commit, and the counters that go with them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, case, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from storage.database import now
from storage.records import GroupStats, RunStats, Segment, ShardId
from storage.repository.jobs import finalize_if_last, lock_job_of
from storage.repository.rows import as_segment
from storage.repository.shards import end_attempt, fenced
from storage.states import Outcome, ShardState
from storage.tables import attempts, cache_limits, cache_stats, jobs, shard_segments, shards

SCALARS = (
    "rows",
    "prompt_tokens",
    "planned_tokens",
    "cached_tokens",
    "computed_tokens",
    "completion_tokens",
    "forked_tokens",
    "recomputed_tokens",
    "wasted_tokens",
    "preemptions",
    "engine_seconds",
)
GROUP_COUNTERS = ("blocks_allocated", "blocks_shared", "blocks_copied", "blocks_evicted", "blocks_evicted_unused")


def of_shard(conn: Connection, shard_id: ShardId) -> list[Segment]:
    rows = conn.execute(
        select(shard_segments)
        .where(shard_segments.c.shard_id == shard_id)
        .order_by(shard_segments.c.epoch, shard_segments.c.seq)
    )
    return [as_segment(row) for row in rows]


def of_parents(conn: Connection, shard_id: ShardId) -> list[Segment]:
    """Of the shard that it is a part of, and so on."""
    found: list[Segment] = []
    while (parent_id := conn.scalar(select(shards.c.parent_id).where(shards.c.id == shard_id))) is not None:
        shard_id = ShardId(parent_id)
        found = of_shard(conn, shard_id) + found
    return found


def seal(conn: Connection, shard_id: ShardId, segment: Segment, stats: RunStats) -> bool:
    """False if this very segment was recorded before."""
    _check(segment, stats)
    job = lock_job_of(conn, shard_id)
    if _is_recorded(conn, shard_id, segment):
        return False  # our own seal, whose answer was lost
    if not _is_running(conn, shard_id, segment.epoch):
        raise fenced(conn, shard_id, segment.epoch, f"seal segment {segment.key}")

    conn.execute(
        insert(shard_segments).values(
            shard_id=shard_id,
            epoch=segment.epoch,
            seq=segment.seq,
            key=segment.key,
            sha256=segment.sha256,
            rows=segment.rows,
            succeeded=segment.succeeded,
            errored=segment.errored,
            expired=segment.expired,
            canceled=segment.canceled,
            sealed_at=now(),
        )
    )
    conn.execute(
        update(jobs)
        .where(jobs.c.id == job.id)
        .values(
            rows_succeeded=jobs.c.rows_succeeded + segment.succeeded,
            rows_errored=jobs.c.rows_errored + segment.errored,
            rows_expired=jobs.c.rows_expired + segment.expired,
            rows_canceled=jobs.c.rows_canceled + segment.canceled,
        )
    )
    conn.execute(
        update(attempts)
        .where(attempts.c.shard_id == shard_id, attempts.c.epoch == segment.epoch)
        .values({name: attempts.c[name] + getattr(stats, name) for name in SCALARS})
    )
    _add_groups(conn, job.id, shard_id, segment.epoch, stats.groups)
    _add_limits(conn, job.id, shard_id, segment.epoch, stats.limited_by)
    return True


def commit(
    conn: Connection, shard_id: ShardId, epoch: int, out_key: str, out_sha256: str, rows: int, gauges: RunStats
) -> bool:
    """False if this very commit was made before."""
    job = lock_job_of(conn, shard_id)
    done = conn.execute(
        update(shards)
        .where(shards.c.id == shard_id, shards.c.epoch == epoch, shards.c.state == ShardState.RUNNING)
        .values(
            state=ShardState.DONE,
            lease_owner=None,
            lease_until=0,
            out_key=out_key,
            out_sha256=out_sha256,
            out_rows=rows,
            error=None,
        )
    )
    if done.rowcount != 1:
        if _is_committed(conn, shard_id, epoch, out_key):
            return False  # our own commit, whose answer was lost
        raise fenced(conn, shard_id, epoch, f"commit {out_key}")

    conn.execute(update(jobs).where(jobs.c.id == job.id).values(shards_done=jobs.c.shards_done + 1))
    conn.execute(
        update(attempts)
        .where(attempts.c.shard_id == shard_id, attempts.c.epoch == epoch)
        .values(wasted_tokens=attempts.c.wasted_tokens + gauges.wasted_tokens)
    )
    idle = [_gauges_only(group) for group in gauges.groups]  # the counters came with the segments
    _add_groups(conn, job.id, shard_id, epoch, idle)
    end_attempt(conn, shard_id, epoch, Outcome.COMMITTED)
    finalize_if_last(conn, job.id)
    return True


def _check(segment: Segment, stats: RunStats) -> None:
    by_status = segment.succeeded + segment.errored + segment.expired + segment.canceled
    assert by_status == segment.rows, f"segment {segment.key}: {segment.rows} rows, but {by_status} by status"
    assert stats.prompt_tokens == stats.cached_tokens + stats.computed_tokens, (
        f"segment {segment.key}: {stats.prompt_tokens} prompt tokens are not {stats.cached_tokens} cached"
        f" + {stats.computed_tokens} computed"
    )


def _is_running(conn: Connection, shard_id: ShardId, epoch: int) -> bool:
    """And it stays so until the end of this transaction."""
    found = conn.execute(
        select(shards.c.id)
        .where(shards.c.id == shard_id, shards.c.epoch == epoch, shards.c.state == ShardState.RUNNING)
        .with_for_update()
    )
    return found.one_or_none() is not None


def _is_recorded(conn: Connection, shard_id: ShardId, segment: Segment) -> bool:
    sha256 = conn.execute(
        select(shard_segments.c.sha256).where(
            shard_segments.c.shard_id == shard_id,
            shard_segments.c.epoch == segment.epoch,
            shard_segments.c.seq == segment.seq,
        )
    ).scalar_one_or_none()
    assert sha256 in {None, segment.sha256}, f"segment {segment.key} is recorded with other contents"
    return sha256 is not None


def _is_committed(conn: Connection, shard_id: ShardId, epoch: int, out_key: str) -> bool:
    row = conn.execute(select(shards).where(shards.c.id == shard_id)).one()
    return bool(row.state == ShardState.DONE and row.epoch == epoch and row.out_key == out_key)


def _gauges_only(group: GroupStats) -> GroupStats:
    return GroupStats(
        index=group.index,
        kind=group.kind,
        layers=group.layers,
        block_size=group.block_size,
        window=group.window,
        blocks_peak=group.blocks_peak,
        blocks_mean=group.blocks_mean,
    )


def _add_groups(conn: Connection, job_id: int, shard_id: ShardId, epoch: int, groups: Iterable[GroupStats]) -> None:
    """Counters add up; a peak only rises; a mean is the attempt's mean so far, so the latest one stands."""
    for group in groups:
        values: dict[str, Any] = {name: getattr(group, name) for name in GROUP_COUNTERS}
        values |= {"blocks_peak": group.blocks_peak, "blocks_mean": group.blocks_mean}
        key = {"shard_id": shard_id, "epoch": epoch, "group_index": group.index}
        shape = {"kind": group.kind, "layers": group.layers, "block_size": group.block_size, "window": group.window}
        upsert = _insert(conn, cache_stats).values(job_id=job_id, **key, **shape, **values)
        new, old = upsert.excluded, cache_stats.c
        added: dict[str, ColumnElement[Any]] = {name: old[name] + new[name] for name in GROUP_COUNTERS}
        added["blocks_peak"] = case((new.blocks_peak > old.blocks_peak, new.blocks_peak), else_=old.blocks_peak)
        added["blocks_mean"] = case((new.blocks_mean > 0, new.blocks_mean), else_=old.blocks_mean)
        conn.execute(upsert.on_conflict_do_update(index_elements=list(key), set_=added))


def _add_limits(
    conn: Connection, job_id: int, shard_id: ShardId, epoch: int, limits: Iterable[tuple[str, int]]
) -> None:
    for name, tokens in limits:
        key = {"shard_id": shard_id, "epoch": epoch, "name": name}
        upsert = _insert(conn, cache_limits).values(job_id=job_id, **key, tokens=tokens)
        added = {"tokens": cache_limits.c.tokens + upsert.excluded.tokens}
        conn.execute(upsert.on_conflict_do_update(index_elements=list(key), set_=added))


def _insert(conn: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    return sqlite.insert(table) if conn.dialect.name == "sqlite" else postgresql.insert(table)
