"""The part of the repository that deals with workers."""

from __future__ import annotations

from storage.database import Database
from storage.records import Health, ModelRef, WorkerRecord
from storage.repository import workers


class WorkerMoves:
    """Each call is one transaction."""

    _db: Database

    def register_worker(self, worker: WorkerRecord) -> None:
        """A new boot under an old name replaces it. `heartbeat_age` is not read."""
        with self._db.write() as conn:
            workers.register(conn, worker)

    def beat_worker(self, worker_id: str, boot_id: str, state: str, health: Health | None = None) -> bool:
        """True once the worker was asked to drain. Raises Fenced when another boot has this name now."""
        with self._db.write() as conn:
            return workers.beat(conn, worker_id, boot_id, state, health or Health())

    def request_drain(self, worker_id: str | None, max_age_seconds: float) -> list[str]:
        """Ask one live worker, or all of them, to take no new shard and to leave when its shards have ended; the names
        of those that are asked. It hears of it with its next heartbeat."""
        with self._db.write() as conn:
            return workers.request_drain(conn, worker_id, max_age_seconds)

    def workers(self, max_age_seconds: float | None = None) -> list[WorkerRecord]:
        """Those heard of within `max_age_seconds`; None: all that ever were."""
        with self._db.read() as conn:
            return workers.alive(conn, max_age_seconds)

    def waiting_models(self) -> list[tuple[ModelRef, int]]:
        """Models with open shards and how many, the model of the oldest waiting job first; models of which every open
        shard is running come last."""
        with self._db.read() as conn:
            return workers.waiting_models(conn)
