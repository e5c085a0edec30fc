"""A process that serves no model says in SQL that it lives, so that `submit`, `status` and `doctor` can miss it."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.report import RECONCILER
from jobs.settings import Settings
from storage.errors import StorageError
from storage.records import WorkerRecord
from storage.repository import Repository

log = logging.getLogger(__name__)


@contextmanager
def announced(settings: Settings, database_url: str) -> Iterator[None]:
    """Have a reconciler's record fresh while the block runs. An outage of the database only makes it stale.

    Raises DatabaseDown and SchemaOutdated at the start.
    """
    repository = Repository(database_url)
    try:
        repository.check_schema()
        record = WorkerRecord(
            id=f"{RECONCILER}-{os.getpid()}@{socket.gethostname()}",
            boot_id=uuid.uuid4().hex,
            model_key="",
            model_source=RECONCILER,
            device="none",
            state="ready",
            heartbeat_age=0.0,
        )
        repository.register_worker(record)
        done = threading.Event()
        beats = threading.Thread(target=_beat, args=(repository, record, settings.heartbeat_seconds, done), daemon=True)
        beats.start()
        try:
            yield
        finally:
            done.set()
            beats.join()
    finally:
        repository.close()


def _beat(repository: Repository, record: WorkerRecord, every: float, done: threading.Event) -> None:
    state = record.state
    while state != "gone":
        state = "gone" if done.wait(every) else record.state
        try:
            repository.beat_worker(record.id, record.boot_id, state)
        except StorageError as error:
            log.warning("the reconciler's record was not renewed: %s", error)
