"""Everything that a job needs, started for one test: a real broker, a database, worker processes, a reconciler.

Leases are about a second long, so that a death is noticed within a test's patience.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.broker import PrivateBroker
from jobs.children import spawn
from jobs.options import SubmitOptions
from jobs.reconciler import Reconciler, make_dispatcher
from jobs.sampling import Sampling
from jobs.settings import Settings
from jobs.submit import submit
from jobs.supervisor import worker_environment
from storage import migrate
from storage.records import Job, JobId, Shard
from storage.repository import Repository
from storage.states import JOB_FINAL, JobState
from tests.fakes import make_fake_model
from tests.faults.checker import Bounds, check_job
from tests.faults.engine import fake_text

ROOT = Path(__file__).parents[2]
MAX_TOKENS = 12
PATIENCE = 60.0  # seconds until a condition that never comes true fails the test


def wait_for(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Poll until the condition holds; fail with `what` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


@dataclass(slots=True)
class WorkerProcess:
    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout: float = 15.0) -> int:
        """SIGTERM, and the exit code. Fails when the worker does not leave in time."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass(slots=True)
class Harness:
    """`with Harness.create(folder, database_url) as harness:` ends every process it started."""

    folder: Path
    settings: Settings
    database_url: str
    broker: PrivateBroker
    repository: Repository
    model: Path
    workers: list[WorkerProcess] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _reconciler: threading.Thread | None = None

    @classmethod
    def create(cls, folder: Path, database_url: str | None = None, **changes: object) -> Self:
        url = database_url or f"sqlite:///{folder}/harness.db"
        migrate.upgrade(url)
        home = Path(tempfile.mkdtemp(prefix="nm-"))  # short: it holds a socket
        values: dict[str, object] = {
            "home": home,
            "lease_seconds": 1.5,
            "heartbeat_seconds": 0.3,
            "reconcile_seconds": 0.2,
            "hint_stale_seconds": 2.0,
            "segment_seconds": 0.2,
            "segment_rows": 8,
            "worker_stale_seconds": 2.0,
            "restart_backoff_seconds": 0.1,
            "stop_seconds": 10.0,  # the default of 4.5 is for machines that do nothing else
            "max_sequences": 8,
            "engine_factory": "tests.faults.engine:traced_engine",
            **changes,
        }
        return cls(
            folder=folder,
            settings=Settings(**values),  # type: ignore[arg-type]
            database_url=url,
            broker=PrivateBroker(home),
            repository=Repository(url),
            model=make_fake_model(folder / "model"),
        )

    def __enter__(self) -> Self:
        self.broker.start()
        self.start_reconciler()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.broker.stop()
        self.repository.close()

    def stop(self) -> None:
        """End workers and reconciler. Nothing moves any more."""
        for worker in self.workers:
            worker.process.kill()
            worker.process.wait()
        self.stop_reconciler()

    # --- processes --------------------------------------------------------------------------------------------
    def start_worker(
        self, name: str, model: str | None = None, *, within: tuple[str, ...] = (), **environment: str
    ) -> WorkerProcess:
        """`within`: a command that starts it somewhere else."""
        log = self.folder / f"{name}-{len(self.workers)}.log"
        command = [*within, sys.executable, "-P", "-m", "jobs.worker", "--name", name]
        command += ["--model", str(self.model) if model is None else model] if model != "" else []
        variables = {
            **worker_environment(self.settings, self.broker.url),
            "NIGHTMILL_DATABASE_URL": self.database_url,
            "OMP_NUM_THREADS": "1",
            "FAKE_ENGINE_TRACE": str(self.trace),
            **environment,
        }
        with log.open("wb") as out:
            worker = WorkerProcess(name, spawn(command, env=variables, log=out, cwd=ROOT), log)
        self.workers.append(worker)
        return worker

    def put_to_sleep(self, worker: WorkerProcess) -> None:
        """SIGSTOP, but not while it holds SQLite's only write lock: then everybody else would sleep with it."""
        path = self.database_url.removeprefix("sqlite:///")
        while True:
            worker.process.send_signal(signal.SIGSTOP)
            with closing(sqlite3.connect(path, timeout=0.5, isolation_level=None)) as connection:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError:
                    worker.process.send_signal(signal.SIGCONT)

    def start_reconciler_process(self, name: str, **environment: str) -> WorkerProcess:
        """A reconciler of its own, which can be stopped and killed; ends with the harness."""
        return self.start_program(name, ["-m", "nightmill", "reconciler"], **environment)

    def start_program(self, name: str, arguments: list[str], **environment: str) -> WorkerProcess:
        """Any other Python program with the same settings."""
        log = self.folder / f"{name}-{len(self.workers)}.log"
        variables = {**worker_environment(self.settings, self.broker.url), "NIGHTMILL_DATABASE_URL": self.database_url}
        with log.open("wb") as out:
            command = [sys.executable, "-P", *arguments]
            process = WorkerProcess(name, spawn(command, env={**variables, **environment}, log=out, cwd=ROOT), log)
        self.workers.append(process)
        return process

    def start_reconciler(self) -> None:
        self._stop = threading.Event()
        reconciler = Reconciler(
            self.settings, self.repository, make_dispatcher(self.settings, self.repository, self.broker.url)
        )
        self._reconciler = threading.Thread(target=reconciler.run, args=(self._stop,), daemon=True)
        self._reconciler.start()

    def stop_reconciler(self) -> None:
        self._stop.set()
        if self._reconciler is not None:
            self._reconciler.join()

    # --- jobs -------------------------------------------------------------------------------------------------
    def write_input(self, prompts: list[str], name: str = "input") -> Path:
        path = self.folder / f"{name}.parquet"
        pq.write_table(pa.table({"prompt": prompts, "note": [f"note {i}" for i in range(len(prompts))]}), path)
        return path

    def submit(self, prompts: list[str], *, shard_rows: int = 16, n: int = 1, name: str = "out") -> Job:
        options = SubmitOptions(
            inputs=(str(self.write_input(prompts, f"{name}-input")),),
            output=self.folder / name,
            model=str(self.model),
            sampling=Sampling().overridden({"max_tokens": MAX_TOKENS, "n": n}),
            shard_rows=shard_rows,
            seed=7,
        )
        return submit(options, self.repository, self.settings).job

    @property
    def trace(self) -> Path:
        """What the fake engines of all workers made."""
        return self.folder / "trace.txt"

    def check(self, job_id: JobId, keys: set[tuple[int, int]], *, seconds: float = PATIENCE) -> pa.Table:
        """C1 to C8 of a job that has ended; the published data."""
        bounds = Bounds(text=lambda row: fake_text(row, MAX_TOKENS), trace=self.trace, seconds=seconds)
        return check_job(self.repository, job_id, keys, bounds)

    def job(self, job_id: JobId) -> Job:
        return self.repository.get_job(job_id)

    def wait_for_end(self, job_id: JobId, seconds: float = PATIENCE) -> Job:
        try:
            wait_for(lambda: self.job(job_id).state in JOB_FINAL, f"job {job_id} ends", seconds)
        except AssertionError as error:
            logs = "\n".join(f"--- {worker.name}\n{worker.text[-4000:]}" for worker in self.workers)
            raise AssertionError(f"{error}: {self.job(job_id)}\n{logs}") from error
        return self.job(job_id)

    def done(self, job_id: JobId, rows: int, *, seconds: float = PATIENCE) -> Job:
        """Wait until a job of so many rows has completed, and check it (C1 to C8)."""
        ended = self.wait_for_end(job_id, seconds)
        assert ended.state is JobState.COMPLETED, ended
        self.check(job_id, keys(rows), seconds=seconds)
        return ended

    def shards(self, job_id: JobId) -> list[Shard]:
        return self.repository.shards(job_id)

    def wait_for_rows(self, job_id: JobId, rows: int, seconds: float = PATIENCE) -> None:
        wait_for(lambda: self.job(job_id).rows_done >= rows, f"{rows} rows of job {job_id}", seconds)


def prompts(num: int) -> list[str]:
    return [f"prompt number {i}" for i in range(num)]


def keys(num: int) -> set[tuple[int, int]]:
    """What a job of so many rows must publish."""
    return {(i, 0) for i in range(num)}


def speed(rows_per_second: int) -> dict[str, str]:
    """For the environment of a worker: how fast its engine is."""
    return {"FAKE_ENGINE_ROWS_PER_SECOND": str(rows_per_second)}


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
