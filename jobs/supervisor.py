"""Keeps one worker process of embedded mode running while jobs wait."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

from jobs.children import end, import_path, spawn
from jobs.restarts import EXIT_MODEL, Restarts
from jobs.settings import Settings
from storage.errors import StorageError
from storage.repository import Repository

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
LOG_TAIL = 2000  # characters


class WorkerSupervisor:
    """Starts the worker when a job waits for one, and again, with back-off, when it dies: a few times in a row."""

    def __init__(self, settings: Settings, repository: Repository, broker_url: str, model: str | None) -> None:
        self.problem: str | None = None  # why there is no worker any more
        self._settings = settings
        self._repository = repository
        self._environment = worker_environment(settings, broker_url)
        self._model = model
        self._log_path = settings.home / "worker.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._boots: set[str] = set()  # of workers that were ready when they were killed
        self._restarts = Restarts(settings.restart_backoff_seconds, settings.max_consecutive_restarts)
        self._wanted: str | None = None  # key of the model that waited longest when the worker was started
        self._stopping = threading.Event()
        # The worker dies with the thread that starts it, so this one thread starts every worker.
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """The worker seals its work and leaves. Idempotent."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(POLL_SECONDS) and self.problem is None:
                self._tend(time.monotonic())
        finally:
            if self._process is not None:
                end(self._process, 2 * self._settings.stop_seconds)

    def _tend(self, now: float) -> None:
        if self._process is None:
            if now >= self._restarts.start_at and (wanted := self._longest_waiting()) is not None:
                self._wanted = wanted
                self._start(now)
        elif (code := self._process.poll()) is not None:
            self._process = None
            self._ended(code, now)

    def _start(self, now: float) -> None:
        command = [sys.executable, "-P", "-m", "jobs.worker"]
        if self._model is not None:
            command += ["--model", self._model]
        with self._log_path.open("ab") as out:
            self._process = spawn(command, env=self._environment, log=out, cwd=self._settings.home)
        self._started_at = now
        log.info("worker started pid=%d", self._process.pid)

    def _ended(self, code: int, now: float) -> None:
        was_ready = code < 0 and self._was_ready()
        self._restarts.ended(code, now - self._started_at, now, was_ready=was_ready)
        if code == 0:
            return
        failures = self._restarts.failures
        log.warning("worker ended code=%d failures=%d", code, failures)
        # A job whose model is refused has failed with the reason. One that still waits would be refused once more.
        if code == EXIT_MODEL and self._longest_waiting() == self._wanted:
            self.problem = f"the worker cannot serve the job as it is set up; {self._last_words()}"
        elif self._restarts.spent:
            self.problem = f"the worker ended {failures} times in a row (exit {code}); {self._last_words()}"

    def _was_ready(self) -> bool:
        """Whether the worker that was killed had come so far as to take shards. Its record is what it said last."""
        try:
            serving = [record for record in self._repository.workers() if record.model_key]
        except StorageError:
            return False
        boots = {record.boot_id for record in serving if record.state == "ready"}
        is_new = not boots <= self._boots
        self._boots |= boots
        return is_new

    def _last_words(self) -> str:
        return f"its log is {self._log_path}:\n{self._log_path.read_text(errors='replace')[-LOG_TAIL:]}"

    def _longest_waiting(self) -> str | None:
        """The key of the model that waits longest for a worker; None when none does or the database is away."""
        try:
            waiting = self._repository.waiting_models()
        except StorageError as error:
            log.warning("the database does not answer: %s", error)
            return None
        return waiting[0][0].key if waiting else None


def worker_environment(settings: Settings, broker_url: str) -> Mapping[str, str]:
    """These settings as a child process reads them. Addresses go by environment: arguments are seen by all users."""
    given = {
        f"NIGHTMILL_{name.upper()}": str(value)
        for name, value in settings.model_dump(exclude={"broker_url", "database_url"}).items()
        if value is not None
    }
    pinned = {"CUDA_VISIBLE_DEVICES": "0"} if settings.device.startswith("cuda") else {}  # unless the user says which
    return (
        pinned
        | os.environ
        | given
        | {
            "NIGHTMILL_BROKER_URL": broker_url,
            "NIGHTMILL_DATABASE_URL": f"sqlite:///{settings.home}/nightmill.db",
            "PYTHONPATH": import_path(),
        }
    )
