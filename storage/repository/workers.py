"""Workers that said they are alive, and the models that wait for one."""

from __future__ import annotations

from sqlalchemy import Connection, case, func, insert, select, update

from storage.database import now
from storage.errors import Fenced
from storage.records import ModelRef, WorkerRecord
from storage.repository.rows import as_model
from storage.states import JOB_RUNNABLE, SHARD_OPEN, SHARD_WAITING
from storage.tables import jobs, shards, workers


def register(conn: Connection, worker: WorkerRecord) -> None:
    """A new boot under an old name replaces it."""
    values = {
        "boot_id": worker.boot_id,
        "model_key": worker.model_key,
        "model_source": worker.model_source,
        "device": worker.device,
        "state": worker.state,
        "started_at": now(),
        "heartbeat_at": now(),
    }
    known = conn.execute(update(workers).where(workers.c.id == worker.id).values(values))
    if known.rowcount == 0:
        conn.execute(insert(workers).values(id=worker.id, **values))


def beat(conn: Connection, worker_id: str, boot_id: str, state: str) -> None:
    known = conn.execute(
        update(workers)
        .where(workers.c.id == worker_id, workers.c.boot_id == boot_id)
        .values(state=state, heartbeat_at=now())
    )
    if known.rowcount != 1:
        raise Fenced(f"worker name {worker_id} belongs to another process; give each worker its own name")


def alive(conn: Connection, max_age_seconds: float | None) -> list[WorkerRecord]:
    query = select(workers, (now() - workers.c.heartbeat_at).label("age")).order_by(workers.c.id)
    if max_age_seconds is not None:
        query = query.where(workers.c.heartbeat_at > now() - max_age_seconds)
    return [
        WorkerRecord(
            id=row.id,
            boot_id=row.boot_id,
            model_key=row.model_key,
            model_source=row.model_source,
            device=row.device,
            state=row.state,
            heartbeat_age=max(0.0, row.age),
        )
        for row in conn.execute(query)
    ]


def waiting_models(conn: Connection) -> list[tuple[ModelRef, int]]:
    """A job waits for a worker if a shard of it is ready or queued; those that only have running ones come last."""
    model = (jobs.c.model_source, jobs.c.model_revision, jobs.c.model_dtype, jobs.c.model_key)
    waits = func.min(case((shards.c.state.in_(SHARD_WAITING), jobs.c.id)))
    rows = conn.execute(
        select(*model, func.count().label("num_open"))
        .join(shards, shards.c.job_id == jobs.c.id)
        .where(jobs.c.state.in_(JOB_RUNNABLE), shards.c.state.in_(SHARD_OPEN))
        .group_by(*model)
        .order_by(waits.is_(None), waits, func.min(jobs.c.id))
    )
    return [(as_model(row), row.num_open) for row in rows]
