"""Keeps one worker process of embedded mode running while jobs wait."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from jobs.children import end, spawn
from jobs.settings import Settings
from storage.errors import StorageError
from storage.repository import Repository

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
HEALTHY_SECONDS = 60.0  # a worker that lived this long had a good start
LOG_TAIL = 2000  # characters
EXIT_MODEL = 78  # as in jobs.worker: the job has failed with the reason, starting again would not help


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
        self._start_at = 0.0
        self._failures = 0
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
            if now >= self._start_at and self._job_waits():
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
        if code in (0, EXIT_MODEL):
            self._failures = 0
            return
        self._failures = 1 if now - self._started_at > HEALTHY_SECONDS else self._failures + 1
        self._start_at = now + self._settings.restart_backoff_seconds * 2.0 ** (self._failures - 1)
        log.warning("worker ended code=%d failures=%d", code, self._failures)
        if self._failures > self._settings.max_consecutive_restarts:
            tail = self._log_path.read_text(errors="replace")[-LOG_TAIL:]
            self.problem = (
                f"the worker ended {self._failures} times in a row (exit {code}); its log is {self._log_path}:\n{tail}"
            )

    def _job_waits(self) -> bool:
        try:
            return bool(self._repository.waiting_models())
        except StorageError as error:
            log.warning("the database does not answer: %s", error)
            return False


def worker_environment(settings: Settings, broker_url: str) -> Mapping[str, str]:
    """These settings as a child process reads them. Addresses go by environment: arguments are seen by all users."""
    given = {
        f"NIGHTMILL_{name.upper()}": str(value)
        for name, value in settings.model_dump(exclude={"broker_url", "database_url"}).items()
        if value is not None
    }
    root = str(Path(__file__).resolve().parents[1])
    path = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return (
        os.environ
        | given
        | {
            "NIGHTMILL_BROKER_URL": broker_url,
            "NIGHTMILL_DATABASE_URL": f"sqlite:///{settings.home}/nightmill.db",
            "PYTHONPATH": os.pathsep.join(path),
        }
    )
