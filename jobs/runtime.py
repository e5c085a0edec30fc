"""What one worker process owns, and how it watches over itself."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from jobs.disk import NO_ROOM
from jobs.outcome import Outcome
from jobs.pool import Cancels
from jobs.restarts import EXIT_ENGINE_DEAD
from jobs.shard import run_shard
from jobs.tools import Tools
from storage.errors import StorageError
from storage.records import Health, JobId, ShardId

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.2
DISK_SECONDS = 1.0  # between two looks at disks that were full
RECONNECT_SECONDS = 60.0  # within which Celery finds a broker that is back: it tries every 30 s
RELEASE_SECONDS = 2.0  # what attempts get to give their shards back when the engine has died


class Runtime:
    """The tools of the attempts and the cancel events of their threads; tasks reach it through the application."""

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        self.gate = tools.gate
        self.cancels = Cancels()
        self._ticked_at: float | None = None

    def run_shard(self, shard_id: ShardId, *, job_id: JobId | None = None, alone: bool = False) -> Outcome:
        """One attempt, in the thread that calls. Raises ShardFailed."""
        return run_shard(self.tools, shard_id, self.cancels.current, job_id=job_id, alone=alone)

    def wait_idle(self) -> None:
        """Until every attempt has given its shard back; the watchdog sees to it that this has an end."""
        while self.gate.in_flight:
            time.sleep(WATCH_SECONDS / 10)

    def tick(self) -> None:
        """The event loop lives."""
        self._ticked_at = time.monotonic()

    @property
    def loop_age(self) -> float | None:
        """Seconds since the event loop last moved; None before it does."""
        return None if self._ticked_at is None else time.monotonic() - self._ticked_at

    def health(self) -> Health:
        """What the heartbeat says of this process."""
        return Health(
            loop_age=self.loop_age,
            step_age=self.tools.engine.last_step_age(),
            notice="; ".join(self.gate.reasons) or None,
        )

    def drain(self) -> None:
        """Take nothing new, and let every attempt seal its rows and release its shard."""
        self.tools.leases.say("draining")
        self.gate.close("stopping")
        self.tools.stopping.set()


class Watchdog:
    """Ends the process: at once when the engine is dead or stuck, in order when nobody needs it any more or another
    process has its name, and by force when an orderly stop takes too long."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        stop: Callable[[], None],
        nobody_waits: Callable[[], bool] | None,
        broker_answers: Callable[[], bool] = lambda: True,
        exit_now: Callable[[int], None] = os._exit,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stop` begins an orderly stop; `nobody_waits` asks SQL, None when the worker never leaves by itself. While
        the broker does not answer, an event loop that waits for it is none that hangs."""
        self._runtime = runtime
        self._stop = stop
        self._nobody_waits = nobody_waits
        self._broker_answers = broker_answers
        self._exit_now = exit_now
        self._monotonic = monotonic
        self._settings = runtime.tools.settings
        self._busy_at = monotonic()
        self._stopping_at: float | None = None
        self._replaced = False
        self._is_draining = False
        self._has_told = False
        self._disk_at = monotonic()
        self._answers_since: float | None = None  # the broker, while the event loop does not move
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """The orderly stop has succeeded."""
        self._ended.set()

    def look(self) -> None:
        """One look at everything."""
        now = self._monotonic()
        if self._runtime.tools.stopping.is_set():
            self._watch_stop(now)
        elif self._engine_is_dead():
            self._leave_dead(RELEASE_SECONDS)
        elif self._loop_hangs():
            self._runtime.tools.stopping.set()  # attempts seal their rows and give their shards back
            self._leave_dead(self._settings.stop_seconds)
        elif self._runtime.tools.leases.replaced is not None:
            self._leave_replaced()
        elif self._runtime.tools.leases.drain_requested:
            self._watch_drain()
        else:
            self._watch_disk(now)
            self._watch_idle(now)

    def _run(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            try:
                self.look()
            except Exception:  # a mistake of ours in one look: nobody else would see an engine that hangs
                log.exception("the watchdog could not look")

    def _watch_stop(self, now: float) -> None:
        self._stopping_at = now if self._stopping_at is None else self._stopping_at
        if now - self._stopping_at > self._settings.stop_seconds:
            log.error("worker did not stop in %.1f s; leaving by force", self._settings.stop_seconds)
            self._exit_now(1)

    def _engine_is_dead(self) -> bool:
        engine = self._runtime.tools.engine
        if not engine.alive:
            log.critical("the engine has died; the worker leaves and must be started again")
            return True
        if engine.load > 0 and engine.last_step_age() > self._settings.engine_stall_seconds:
            log.critical("the engine has rows and made no step for %.0f s", engine.last_step_age())
            return True
        return False

    def _loop_hangs(self) -> bool:
        """It answers no more, takes no hint, and no signal would reach it. One that waited for the broker has some time
        to find it again."""
        age, limit = self._runtime.loop_age, self._settings.loop_stall_seconds
        if age is None or age <= limit or not self._broker_answers():
            self._answers_since = None
            return False
        now = self._monotonic()
        self._answers_since = now if self._answers_since is None else self._answers_since
        if now - self._answers_since < min(RECONNECT_SECONDS, limit):
            return False
        log.critical("the event loop has not moved for %.0f s; the worker leaves and must be started again", age)
        return True

    def _leave_dead(self, seconds: float) -> None:
        self._runtime.tools.leases.say("gone")
        self._runtime.gate.close("dead")
        deadline = self._monotonic() + seconds
        while self._runtime.gate.in_flight and self._monotonic() < deadline:
            self._ended.wait(WATCH_SECONDS)
        try:
            self._runtime.tools.leases.beat()
        except StorageError as error:
            log.warning("the worker's end could not be recorded: %s", error)
        self._exit_now(EXIT_ENGINE_DEAD)

    def _leave_replaced(self) -> None:
        if not self._replaced:
            self._replaced = True
            log.critical("%s; the worker seals its rows and leaves", self._runtime.tools.leases.replaced)
            self._stop()

    def _watch_drain(self) -> None:
        """No new shard; when the last one has ended the worker leaves."""
        if not self._is_draining:
            self._is_draining = True
            log.info("the worker was asked to drain: it finishes its shards and leaves")
            self._runtime.tools.leases.say("draining")
            self._runtime.gate.close("draining")
        elif not self._runtime.gate.in_flight and not self._has_told:
            self._has_told = True
            self._stop()

    def _watch_disk(self, now: float) -> None:
        if now - self._disk_at < DISK_SECONDS:
            return
        self._disk_at = now
        if self._runtime.tools.disk.short_of():
            self._runtime.gate.close(NO_ROOM)
        else:
            self._runtime.gate.open(NO_ROOM)

    def _watch_idle(self, now: float) -> None:
        if self._runtime.gate.in_flight:
            self._busy_at = now
        if self._nobody_waits is None or now - self._busy_at < self._settings.idle_exit_seconds:
            return
        self._busy_at = now
        if self._nobody_waits():
            log.info("nothing waits for this model; the worker leaves")
            self._stop()
