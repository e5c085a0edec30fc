"""The loop that makes everything happen at last: leases that ran out, hints that got lost, jobs that are complete or
were left half-planned, schedules that are due.

Any number may run, since every move is compare-and-set. It depends on SQL alone; without the broker, hints wait.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_when_event_set, wait_exponential
from tenacity.nap import sleep_using_event

from jobs.abandoned import AbandonedJobs
from jobs.app import make_app
from jobs.control import serving_control
from jobs.damage import find_damages
from jobs.dispatch import BrokerDown, Dispatcher
from jobs.embedded import connect
from jobs.publishing import publish_job
from jobs.quarantine import divide_crashed
from jobs.retry import decide
from jobs.schedules.keeper import ScheduleKeeper
from jobs.settings import Settings
from jobs.signals import set_on_signals
from jobs.tasks import publish_hint, queue_length
from jobs.withdrawal import give_back
from storage import failpoints
from storage.changes import Changes
from storage.errors import DatabaseDown, Fenced, FileDamaged, StorageError
from storage.output import forget_drafts, sweep, work_folders
from storage.parquet.damage import FilesDamaged
from storage.records import Job, Shard
from storage.repository import Repository
from storage.states import JOB_FINAL

log = logging.getLogger(__name__)

MANY_JOBS = 1000  # that ended of late
QUIET_SECONDS = 5.0  # after which a lease may have run out, or a deadline, although nobody wrote
LOOK_SECONDS = 0.1  # until the loop sees that there is something new
REST_SHARE = 5  # times what a tick took, it rests after it, however much others write
SHORTEST_PAUSE = 1.0  # seconds between tries while SQL or broker are down
LONGEST_PAUSE = 30.0


def make_dispatcher(settings: Settings, repository: Repository, broker_url: str) -> Dispatcher:
    """What sends hints on this broker."""
    app = make_app(broker_url, prefix=settings.redis_prefix, slots=settings.worker_slots)
    return Dispatcher(
        repository=repository,
        publish=lambda hint: publish_hint(app, hint),
        queue_length=lambda model_key: queue_length(app, model_key),
        slots=settings.worker_slots,
        stale_seconds=settings.hint_stale_seconds,
        worker_stale_seconds=settings.worker_stale_seconds,
    )


class PublishingLeft(Exception):
    """This process must leave; the job waits for the next one that publishes it."""


class Reconciler:
    """`tick` does everything once; `run` does it again and again."""

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        dispatcher: Dispatcher,
        *,
        grace_seconds: float = 0.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """For the first `grace_seconds` no lease is taken for over: an outage of SQL may just have ended, which this
        process, started in it, knows nothing of, and workers that live renew their leases in that time."""
        self._settings = settings
        self._repository = repository
        self._dispatcher = dispatcher
        self._monotonic = monotonic
        self._expires_from = monotonic() + grace_seconds
        self._owner = f"reconciler-{uuid.uuid4().hex[:8]}@{socket.gethostname()}"
        self._stopping = threading.Event()  # what runs long ends early
        self._hurry = threading.Event()  # set by work beside the loop: the next tick need not wait
        self._abandoned = AbandonedJobs(settings, repository, self._owner, self._hurry.set)
        self._schedules = ScheduleKeeper(settings, repository, self._owner, done=self._hurry.set)

    def sweep_published(self) -> None:
        """Remove what a reconciler that died right after publishing could not. Raises DatabaseDown."""
        for job in self._repository.list_jobs(MANY_JOBS):
            out = Path(job.output_uri)
            if job.state not in JOB_FINAL or not work_folders(out, job.published_generation):
                continue
            owner = self._repository.find_job(output_uri=job.output_uri)
            if owner is not None and owner.id == job.id:  # else the directory is a newer job's
                sweep(out, job.published_generation)

    def tick(self) -> None:
        """Raises DatabaseDown, BrokerDown.

        An outage of SQL ends every lease although nobody is dead: for one lease after it none is taken for over."""
        try:
            self._tick()
        except DatabaseDown:
            self._expires_from = self._monotonic() + self._settings.lease_seconds
            raise

    def _tick(self) -> None:
        for shard in self._expired():
            log.warning(
                "lease_expired job=%d shard=%d epoch=%d state=%s", shard.job_id, shard.id, shard.epoch, shard.state
            )
        divide_crashed(self._repository)
        for job in self._repository.stop_jobs():
            if job.state in JOB_FINAL:
                give_back(self._repository, job)  # it was never planned
        for job in self._repository.advance_jobs():
            self._finalise(job)
        self._schedules.look()
        self._abandoned.look()
        self._dispatcher.fill()

    def _expired(self) -> Sequence[Shard]:
        if self._monotonic() < self._expires_from:
            return ()
        return self._repository.expire_leases(self._settings.max_job_crashes)

    def run(self, stop: threading.Event, *, on_change: bool = False) -> None:
        """Tick every `reconcile_seconds` until `stop`; an outage only makes the pauses longer.

        With `on_change` also when somebody has written to SQLite, and at least every `QUIET_SECONDS`.
        """
        pause = self._settings.reconcile_seconds
        if on_change:
            pause = min(pause, QUIET_SECONDS)
        self._stopping = stop
        patiently = Retrying(
            retry=retry_if_exception_type((DatabaseDown, BrokerDown)),
            wait=wait_exponential(multiplier=min(pause, SHORTEST_PAUSE), max=max(LONGEST_PAUSE, pause)),
            stop=stop_when_event_set(stop),
            sleep=sleep_using_event(stop),
            before_sleep=_log_outage,
            retry_error_callback=lambda state: None,
        )
        try:
            patiently(self.sweep_published)
            with Changes(self._repository.file if on_change else None) as changes:
                while not stop.is_set():
                    changes.seen()  # what is written from here on is for the next tick
                    began = self._monotonic()
                    patiently(self.tick)
                    least = min(pause, REST_SHARE * (self._monotonic() - began))
                    self._rest(stop, least, pause, changes.seen if on_change else lambda: False)
        finally:
            self._abandoned.stop()
            self._schedules.stop()

    def _rest(self, stop: threading.Event, least: float, pause: float, is_new: Callable[[], bool]) -> None:
        """Until the pause is over or there is something new: what others wrote, though, after the `least` seconds."""
        now = self._monotonic()
        heeds_others, deadline = now + least, now + pause
        while now < deadline and not self._hurry.is_set() and not (now >= heeds_others and is_new()):
            if stop.wait(min(deadline - now, LOOK_SECONDS)):
                return
            now = self._monotonic()
        self._hurry.clear()

    def wake(self) -> None:
        """Look at the schedules now; from any thread."""
        self._schedules.wake()

    def _finalise(self, job: Job) -> None:
        """Publish one job if nobody else does. A job that cannot be published fails with the reason."""
        epoch = self._repository.claim_job(job.id, self._owner, self._settings.lease_seconds)
        if epoch is None:
            return
        job = self._repository.get_job(job.id)  # as it is now that nobody else may move it
        try:
            published = publish_job(self._repository, job, epoch, beat=self._renewal(job, epoch))
            failpoints.reach("publish.before_sql")
            ended = self._repository.complete_job(job.id, epoch, published.manifest_sha256, cause=published.cause)
            failpoints.reach("publish.after_sql")
            log.info("job_ended job=%d state=%s", job.id, ended.state)
            sweep(Path(job.output_uri), job.generation)
        except FilesDamaged as damage:
            self._reopen(job, epoch, damage)
        except PublishingLeft:
            log.info("publishing left job=%d epoch=%d", job.id, epoch)
            with suppress(StorageError):  # then the lease runs out by itself
                self._repository.release_job(job.id, epoch)
        except (Fenced, DatabaseDown) as error:
            log.warning("publishing stopped job=%d error=%s", job.id, error)
        except Exception as error:  # a mistake of ours in one job: the reconciler goes on for all others
            log.exception("publishing failed job=%d epoch=%d", job.id, epoch)
            # The machine's trouble may pass, so it is tried again when the lease has run out; a damaged file stays so.
            may_pass = isinstance(error, OSError | MemoryError) and epoch <= self._settings.max_shard_attempts
            if decide(error, 1).preempted or may_pass:
                return
            with suppress(Fenced):  # it slept past its lease, and another one published and swept
                self._repository.fail_job(job.id, epoch, f"its output could not be published: {error}")

    def _reopen(self, job: Job, epoch: int, damage: FilesDamaged) -> None:
        """What is damaged runs again before the job is published; a job of which that cannot be said fails."""
        limit = self._settings.max_shard_reopenings
        try:
            damages = find_damages(self._repository, job, damage.files, limit)
            self._repository.reopen_shards(job.id, epoch, damages)
            forget_drafts(Path(job.output_uri), job.generation)
        except (Fenced, DatabaseDown) as error:
            log.warning("reopening stopped job=%d error=%s", job.id, error)
        except FileDamaged as error:
            log.error("reopening failed job=%d epoch=%d error=%s", job.id, epoch, error)
            with suppress(Fenced):
                self._repository.fail_job(job.id, epoch, f"its output could not be published: {error}")

    def _renewal(self, job: Job, epoch: int) -> Callable[[], None]:
        """Renews the right to publish, at most once per heartbeat. Raises Fenced, DatabaseDown, PublishingLeft."""
        renewed_at = time.monotonic()

        def renew() -> None:
            nonlocal renewed_at
            if self._stopping.is_set():
                raise PublishingLeft
            if time.monotonic() - renewed_at >= self._settings.heartbeat_seconds:
                self._repository.renew_job(job.id, epoch, self._settings.lease_seconds)
                renewed_at = time.monotonic()

        return renew


def run_reconciler(settings: Settings) -> int:
    """`nightmill reconciler`: until SIGTERM or Ctrl-C; the exit code. Raises StorageError, OwnerMissing."""
    addresses = connect(settings)
    stop = threading.Event()
    set_on_signals(stop, signal.SIGTERM, signal.SIGINT)
    repository = Repository(addresses.database_url)
    failpoints.arm(settings.failpoints, repository.turn)
    try:
        repository.check_schema()
        log.info("reconciler started pid=%d", os.getpid())
        dispatcher = make_dispatcher(settings, repository, addresses.broker_url)
        reconciler = Reconciler(settings, repository, dispatcher, grace_seconds=2 * settings.heartbeat_seconds)
        with serving_control(addresses.broker_url, settings.redis_prefix, reconciler.wake):
            reconciler.run(stop)
    finally:
        repository.close()
    return 0


def _log_outage(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("waiting for SQL or broker try=%d error=%s", state.attempt_number, error)
