"""Which shards are suspected to hold a row that kills its worker, and how often workers died of a job."""

from __future__ import annotations

from sqlalchemy import Connection, and_, case, exists, or_, select, update

from storage.states import QUARANTINE_CRASHES, Outcome
from storage.tables import attempts, jobs, shards

ENGINE_KILLER = "engine_killer"  # the error code of a row that was given up because workers died of it

is_suspect = or_(shards.c.parent_id.is_not(None), shards.c.crashes >= QUARANTINE_CRASHES)
"""It runs alone. A part of a suspected shard is suspected from its beginning."""

crashed_alone = shards.c.crashes > case((shards.c.parent_id.is_not(None), 0), else_=QUARANTINE_CRASHES)
"""Its worker died while it ran nothing else: fewer rows are suspected now, and it must not run as it is."""

may_crash_once_more = and_(shards.c.parent_id.is_(None), shards.c.crashes + 1 < QUARANTINE_CRASHES)
"""One more crash would not make it suspected."""

crashes_before_the_last = case(
    (shards.c.parent_id.is_not(None), 0), (crashed_alone, QUARANTINE_CRASHES), else_=shards.c.crashes
)
"""So many that a shard may run alone once more."""


def count_death(conn: Connection, shard_id: int, epoch: int) -> None:
    """An attempt has crashed: count the death of its worker for the job, once for all that died of it together.

    Attempts of one worker that were open at the same time belong to one process. The caller holds the job's row lock.
    """
    died = conn.execute(select(attempts).where(attempts.c.shard_id == shard_id, attempts.c.epoch == epoch)).one()
    is_counted = exists().where(
        attempts.c.job_id == died.job_id,
        attempts.c.owner == died.owner,
        attempts.c.outcome == Outcome.CRASHED,
        attempts.c.ended_at >= died.started_at,
    )
    conn.execute(update(jobs).where(jobs.c.id == died.job_id, ~is_counted).values(crashes=jobs.c.crashes + 1))
