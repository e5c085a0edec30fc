"""validating -> queued: a frozen plan and its shards enter the database together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

from sqlalchemy import Connection, insert, update

from storage.database import now
from storage.records import Job, JobId, NewShard, PlanRecord
from storage.repository.jobs import fenced, locked
from storage.repository.rows import as_job
from storage.states import JobState, ShardState
from storage.tables import jobs, shards

_INSERT_SHARDS = 500  # per statement


def queue(conn: Connection, job_id: JobId, epoch: int, plan: PlanRecord, new: Iterable[NewShard]) -> Job:
    row = locked(conn, job_id)
    if row.epoch == epoch and row.state == JobState.QUEUED and row.plan_sha256 == plan.sha256:
        return as_job(row)  # our own commit, whose answer was lost
    if row.epoch != epoch or row.state != JobState.VALIDATING:
        raise fenced(conn, job_id, epoch, "store its plan")

    num_shards = num_rows = num_outputs = 0
    for batch in _batches(shard_values(job_id, new), _INSERT_SHARDS):
        conn.execute(insert(shards), batch)
        num_shards += len(batch)
        num_rows += sum(shard["row_hi"] - shard["row_lo"] for shard in batch)
        num_outputs += sum(shard["num_outputs"] for shard in batch)
    assert num_rows == plan.num_rows, f"job {job_id}: the shards hold {num_rows} rows, the plan {plan.num_rows}"

    row = conn.execute(
        update(jobs)
        .where(jobs.c.id == job_id)
        .values(
            state=JobState.QUEUED,
            queued_at=now(),
            error=None,
            lease_owner=None,
            lease_until=0,
            plan_path=plan.path,
            plan_sha256=plan.sha256,
            plan_rows=plan.num_rows,
            plan_prompt_tokens=plan.prompt_tokens,
            plan_predicted_cached_tokens=plan.predicted_cached_tokens,
            plan_lower_bound_tokens=plan.lower_bound_tokens,
            plan_errors=plan.num_errors,
            rows_total=num_outputs,
            shards_total=num_shards,
        )
        .returning(jobs)
    ).one()
    return as_job(row)


def shard_values(job_id: JobId, new: Iterable[NewShard]) -> Iterator[dict[str, Any]]:
    for shard in new:
        num_outputs = shard.row_hi - shard.row_lo if shard.num_outputs is None else shard.num_outputs
        yield asdict(shard) | {"num_outputs": num_outputs, "job_id": job_id, "state": ShardState.READY}


def _batches(values: Iterator[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(values, size)):
        yield batch
