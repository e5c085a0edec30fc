"""The part of the repository that steers jobs after their submission: who plans them, and what a user asks of them."""

from __future__ import annotations

import logging

from storage.database import Database
from storage.records import Job, JobId, NewGeneration
from storage.repository import control, jobs, retries

_log = logging.getLogger(__name__)


class Steering:
    """Each call is one transaction, unless it says otherwise."""

    _db: Database

    def release_job(self, job_id: JobId, epoch: int, why: str | None = None) -> None:
        """Give the right to plan or publish back before it is used; until a plan is made, the job's error says why.
        Raises Fenced."""
        with self._db.write() as conn:
            control.release(conn, job_id, epoch, why)
        _log.info("job_released job=%d epoch=%d", job_id, epoch)

    def unplanned_jobs(self, idle_seconds: float) -> list[Job]:
        """Jobs in validating, older than `idle_seconds`, that nobody plans: whoever did so has died."""
        with self._db.read() as conn:
            return control.unplanned(conn, idle_seconds)

    def pause_job(self, job_id: JobId) -> Job:
        """queued, in_progress -> paused: nothing of it is dispatched or claimed, running shards are given back at their
        next heartbeat. Raises NoSuchJob, JobConflict in another state."""
        with self._db.write() as conn:
            job = control.pause(conn, job_id)
        _log.info("job_paused job=%d", job_id)
        return job

    def resume_job(self, job_id: JobId) -> Job:
        """paused -> queued, or in_progress if it had begun. Raises NoSuchJob, JobConflict in another state."""
        with self._db.write() as conn:
            job = control.resume(conn, job_id)
        _log.info("job_resumed job=%d", job_id)
        return job

    def retry_job(self, job_id: JobId, new: NewGeneration) -> Job:
        """completed, failed, cancelled or expired, with a published generation -> queued: some of its rows run again
        for the next one. Its counts begin with those that are kept. Raises NoSuchJob, JobConflict when the job is open
        or somebody else has made this generation."""
        with self._db.write() as conn:
            job = retries.retry(conn, job_id, new)
        _log.info("job_retried job=%d generation=%d shards=%d", job_id, new.number, len(new.shards))
        return job

    def request_cancel(self, job_id: JobId, *, at_once: bool = False) -> Job:
        """Flag a cancel, cancel its shards that are not running; the job moves to cancelling (from validating straight
        to cancelled). Running shards take no further row; `at_once` they also abort those in the engine, also if the
        cancel was asked for before. A job that is being published completes: all its rows have ended."""
        with self._db.write() as conn:
            job = jobs.request_cancel(conn, job_id, at_once)
        _log.info("job_cancel_requested job=%d state=%s at_once=%s", job_id, job.state, at_once)
        return job

    def stop_jobs(self) -> list[Job]:
        """Jobs whose deadline has passed -> expiring (from validating straight to expired), jobs that fail too often
        -> failing: waiting shards are cancelled, running ones abort at their next heartbeat. One transaction each."""
        with self._db.read() as conn:
            due = control.due(conn)
        stopped = []
        for job_id in due:
            with self._db.write() as conn:
                job = control.stop(conn, job_id)
            if job is not None:
                _log.warning("job_stopped job=%d state=%s reason=%s", job_id, job.state, job.error)
                stopped.append(job)
        return stopped
