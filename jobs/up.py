"""`nightmill up`: everything that schedules need on one host, started together and stopped together.

Embedded mode: this process owns the state directory (broker, reconciler, a worker while jobs wait); beat and Flower are
its children. Real mode: reconciler, worker, beat and Flower are its children; broker and database are there already.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from jobs.children import end, import_path, spawn
from jobs.embedded import EmbeddedOwner, OwnerBusy
from jobs.exits import OwnerMissing
from jobs.restarts import MAX_PAUSE_SECONDS, Restarts
from jobs.settings import Settings
from jobs.signals import set_on_signals
from jobs.supervisor import worker_environment

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
KEEPING_NOTHING = ("beat", "flower")  # so that they need no time to end when this process is killed


@dataclass(slots=True)
class Part:
    """One child process, started again whenever it ends: what ails it may pass by morning."""

    name: str
    command: Sequence[str]
    death_signal: signal.Signals
    restarts: Restarts
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0


class Household:
    """Owns the children. They die with the thread that calls `tend`."""

    def __init__(
        self, settings: Settings, commands: Mapping[str, Sequence[str]], environment: Mapping[str, str]
    ) -> None:
        """Starts nothing yet. `commands`: the arguments of `nightmill`, by the name of the part."""
        self._settings = settings
        self._environment = dict(environment)
        program = [sys.executable, "-P", "-m", "nightmill"]
        self.parts = [
            Part(
                name,
                [*program, *arguments],
                signal.SIGKILL if name in KEEPING_NOTHING else signal.SIGTERM,
                Restarts(settings.restart_backoff_seconds, sys.maxsize),
            )
            for name, arguments in commands.items()
        ]

    def tend(self, now: float) -> None:
        """Start what does not run and whose pause is over."""
        for part in self.parts:
            code = None if part.process is None else part.process.poll()
            if part.process is not None and code is not None:
                part.process = None
                part.restarts.ended(code, now - part.started_at, now)
                log.log(logging.INFO if code == 0 else logging.WARNING, "%s ended code=%d", part.name, code)
            if part.process is None and now >= part.restarts.start_at:
                part.process = spawn(part.command, env=self._environment, death_signal=part.death_signal)
                part.started_at = now
                log.info("%s started pid=%d", part.name, part.process.pid)

    def stop(self) -> None:
        """End all at the same time, in order if they can. Idempotent."""
        running = [part.process for part in self.parts if part.process is not None]
        for process in running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + 2 * self._settings.stop_seconds
        for process in running:
            end(process, max(deadline - time.monotonic(), 0.1))
        for part in self.parts:
            part.process = None


def run_up(settings: Settings, *, flower_port: int | None, gpus: str | None) -> int:
    """Until SIGTERM, Ctrl-C or the end of its terminal; the exit code. `flower_port` None: without Flower.

    Raises OwnerMissing when the private broker ends or another process owns the state directory, StorageError.
    """
    stop = threading.Event()
    asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    set_on_signals(stop, *(number for number in asked if signal.getsignal(number) is not signal.SIG_IGN))  # under nohup
    commands: dict[str, Sequence[str]] = {"beat": ["beat"]}
    if flower_port is not None:
        commands["flower"] = ["flower", "--port", str(flower_port)]
    if settings.embedded:
        with _owner(settings) as owner:
            environment = worker_environment(settings, owner.addresses.broker_url)
            _keep(Household(settings, commands, environment), stop, owner)
        return 0
    workers = ["worker"] if gpus is None else ["worker", "--gpus", gpus]
    environment = {**os.environ, "PYTHONPATH": import_path()}
    _keep(Household(settings, {"reconciler": ["reconciler"], "worker": workers, **commands}, environment), stop, None)
    return 0


def _keep(household: Household, stop: threading.Event, owner: EmbeddedOwner | None) -> None:
    revive_at = 0.0
    try:
        while not stop.wait(POLL_SECONDS):
            now = time.monotonic()
            household.tend(now)
            if owner is not None and now >= revive_at and _worker_was_given_up(owner):
                owner.start_worker()  # for jobs to come: one that cannot be served must not end all nights
                revive_at = now + MAX_PAUSE_SECONDS
    finally:
        household.stop()


def _worker_was_given_up(owner: EmbeddedOwner) -> bool:
    try:
        owner.check()
    except OwnerMissing as problem:
        if not owner.broker_alive:
            raise
        log.error("%s", problem)
        return True
    return False


@contextmanager
def _owner(settings: Settings) -> Iterator[EmbeddedOwner]:
    owner = EmbeddedOwner(settings)
    try:
        owner.start()
    except OwnerBusy as error:
        raise OwnerMissing(f"{error}: a submit or another `nightmill up`; wait for its end or stop it") from error
    try:
        owner.start_worker()
        yield owner
    finally:
        owner.stop()
