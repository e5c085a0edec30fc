"""completed, failed, cancelled, expired -> queued: rows of a published job run again as a new generation of it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from storage.database import now
from storage.errors import JobConflict
from storage.records import Job, JobId, NewGeneration
from storage.repository.jobs import locked
from storage.repository.plans import shard_values
from storage.repository.rows import as_job
from storage.states import JOB_FINAL, JobState, RowStatus
from storage.tables import jobs, shards


def retry(conn: Connection, job_id: JobId, new: NewGeneration) -> Job:
    row = locked(conn, job_id)
    if row.generation == new.number and row.plan_path == new.plan.path:
        return as_job(row)  # our own commit, whose answer was lost
    _check(row, new)

    # A name of a file is never used again, so a shard's number goes on where the generations before have ended.
    first = int(conn.execute(select(func.max(shards.c.idx)).where(shards.c.job_id == job_id)).scalar_one()) + 1
    values = [
        values | {"idx": first + values["idx"], "plan_idx": values["idx"], "generation": new.number}
        for values in shard_values(job_id, new.shards)
    ]
    for start in range(0, len(values), 500):
        conn.execute(insert(shards), values[start : start + 500])

    kept = {status.value: new.kept.get(status.value, 0) for status in RowStatus}
    plan = new.plan
    retried = conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id)
        .values(
            state=JobState.QUEUED,
            generation=new.number,
            error=None,
            queued_at=now(),
            lease_owner=None,
            lease_until=0,
            **dict.fromkeys(("finalizing_at", "paused_at", "finished_at", "deadline_at"), None),
            **dict.fromkeys(("cancel_requested_at", "abort_requested_at"), None),
            crashes=0,
            plan_path=plan.path,
            plan_sha256=plan.sha256,
            # what all generations together have to compute, as their statistics are sums as well
            plan_prompt_tokens=jobs.c.plan_prompt_tokens + plan.prompt_tokens,
            plan_predicted_cached_tokens=jobs.c.plan_predicted_cached_tokens + plan.predicted_cached_tokens,
            plan_lower_bound_tokens=jobs.c.plan_lower_bound_tokens + plan.lower_bound_tokens,
            **{f"{prefix}_{status}": count for status, count in kept.items() for prefix in ("kept", "rows")},
            rows_total=sum(kept.values()) + sum(shard["num_outputs"] for shard in values),
            shards_total=jobs.c.shards_total + len(values),
        )
        .returning(jobs)
    ).one()
    return as_job(retried)


def _check(row: Row[Any], new: NewGeneration) -> None:
    if row.state not in JOB_FINAL:
        raise JobConflict(f"job {row.id} is {row.state}; only the rows of a job that has ended can run again")
    if row.published_generation == 0 or row.retired_at is not None:
        raise JobConflict(f"job {row.id} is {row.state} and has no published results; submit it again")
    if row.generation != new.number - 1:
        raise JobConflict(f"job {row.id} has got generation {row.generation} meanwhile; look at it and try again")
