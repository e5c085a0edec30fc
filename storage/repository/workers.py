"""Workers that said they are alive, and the models that wait for one."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, case, func, insert, select, update

from storage.database import now
from storage.errors import Fenced
from storage.records import Health, ModelRef, WorkerRecord
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
        "loop_at": 0,
        "step_at": 0,
        "notice": None,
        "drain_requested_at": None,
    }
    known = conn.execute(update(workers).where(workers.c.id == worker.id).values(values))
    if known.rowcount == 0:
        conn.execute(insert(workers).values(id=worker.id, **values))


def beat(conn: Connection, worker_id: str, boot_id: str, state: str, health: Health) -> bool:
    known = conn.execute(
        update(workers)
        .where(workers.c.id == worker_id, workers.c.boot_id == boot_id)
        .values(
            state=state,
            heartbeat_at=now(),
            loop_at=0 if health.loop_age is None else now() - health.loop_age,
            step_at=0 if health.step_age is None else now() - health.step_age,
            notice=health.notice,
        )
        .returning(workers.c.drain_requested_at)
    ).one_or_none()
    if known is None:
        raise Fenced(f"worker name {worker_id} belongs to another process; give each worker its own name")
    return known.drain_requested_at is not None


def request_drain(conn: Connection, worker_id: str | None, max_age_seconds: float) -> list[str]:
    """Those that serve a model, live and were not asked before are asked; the names of all that now are."""
    serves = and_(workers.c.model_key != "", workers.c.state != "gone", _is_live(max_age_seconds))
    chosen = serves if worker_id is None else and_(serves, workers.c.id == worker_id)
    conn.execute(update(workers).where(chosen, workers.c.drain_requested_at.is_(None)).values(drain_requested_at=now()))
    return list(conn.scalars(select(workers.c.id).where(chosen).order_by(workers.c.id)))


def _is_live(max_age_seconds: float) -> ColumnElement[bool]:
    return workers.c.heartbeat_at > now() - max_age_seconds


def alive(conn: Connection, max_age_seconds: float | None) -> list[WorkerRecord]:
    query = select(
        workers,
        (now() - workers.c.heartbeat_at).label("age"),
        case((workers.c.loop_at > 0, now() - workers.c.loop_at)).label("loop_age"),
        case((workers.c.step_at > 0, now() - workers.c.step_at)).label("step_age"),
    ).order_by(workers.c.id)
    if max_age_seconds is not None:
        query = query.where(_is_live(max_age_seconds))
    return [
        WorkerRecord(
            id=row.id,
            boot_id=row.boot_id,
            model_key=row.model_key,
            model_source=row.model_source,
            device=row.device,
            state=row.state,
            heartbeat_age=max(0.0, row.age),
            loop_age=row.loop_age,
            step_age=row.step_age,
            notice=row.notice,
            drain_requested=row.drain_requested_at is not None,
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
