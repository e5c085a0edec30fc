"""The part of the repository that steers jobs after their submission: who plans them, and what a user asks of them."""

from __future__ import annotations

import logging

from storage.database import Database
from storage.records import Job, JobId
from storage.repository import control

_log = logging.getLogger(__name__)


class Steering:
    """Each call is one transaction."""

    _db: Database

    def release_job(self, job_id: JobId, epoch: int) -> None:
        """Give the right to plan back before it is used. Raises Fenced."""
        with self._db.write() as conn:
            control.release(conn, job_id, epoch)
        _log.info("job_released job=%d epoch=%d", job_id, epoch)

    def unplanned_jobs(self, idle_seconds: float) -> list[Job]:
        """Jobs in validating, older than `idle_seconds`, that nobody plans: whoever did so has died."""
        with self._db.read() as conn:
            return control.unplanned(conn, idle_seconds)
