"""Random faults on a running job, for a while: from one seed, so that a run can be had again."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import redis

from jobs.broker import PrivateBroker
from storage.records import JobId
from storage.states import JOB_FINAL
from tests.faults.harness import Harness, WorkerProcess, speed, wait_for

POINTS = (
    "claim.before",
    "claim.after",
    "segment.after_fsync",
    "segment.after_row",
    "commit.before_sql",
    "rename.after",
)


@dataclass(slots=True)
class Soak:
    """Keeps `num_workers` workers and a reconciler running and hurts them, until the time is over or the job ends."""

    harness: Harness
    job_id: JobId
    seed: int
    num_workers: int
    rows_per_second: int
    dice: random.Random = field(init=False)
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    reconciler: WorkerProcess | None = None
    asleep: list[WorkerProcess] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def run(self, seconds: float, pause: float) -> None:
        """Raises AssertionError with the seed when something does not come back."""
        until = time.monotonic() + seconds
        of_workers = (self.kill, self.kill, self.sleep, self.stop, self.arm)
        faults = (*of_workers, self.flush, self.restart, self.lock, self.rot, self.kill_reconciler)
        self.harness.stop_reconciler()  # the harness's own is a thread, which cannot be killed
        self.tend()
        while time.monotonic() < until and self.harness.job(self.job_id).state not in JOB_FINAL:
            fault = self.dice.choice(faults)
            self.faults.append(fault.__name__)
            fault()
            next_at = time.monotonic() + self.dice.uniform(0.5, 1.5) * pause
            wait_for(lambda at=next_at: time.monotonic() >= at, "a while passes", seconds=10 * pause + 10)
            self.tend()
        self.wake()
        self.tend()

    def tend(self) -> None:
        """Start what is missing; some of the new ones die by themselves at a failpoint."""
        for number in range(self.num_workers):
            name = f"w{number}"
            worker = self.workers.get(name)
            if worker is None or worker.process.poll() is not None:
                self.workers[name] = self.harness.start_worker(name, **speed(self.rows_per_second))
        if self.reconciler is None or self.reconciler.process.poll() is not None:
            self.reconciler = self.harness.start_reconciler_process("r")

    def wake(self) -> None:
        while self.asleep:
            self.asleep.pop().process.send_signal(signal.SIGCONT)

    # --- faults -----------------------------------------------------------------------------------------------
    def kill(self) -> None:
        self._some_worker().kill()

    def stop(self) -> None:
        self._some_worker().process.send_signal(signal.SIGTERM)

    def sleep(self) -> None:
        """Some sleep until the next one does: often for longer than a lease."""
        self.wake()
        worker = self._some_worker()
        self.harness.put_to_sleep(worker)
        self.asleep.append(worker)

    def arm(self) -> None:
        """One worker starts anew and dies at some failpoint."""
        name = self.dice.choice(sorted(self.workers))
        self.workers[name].kill()
        point = f"{self.dice.choice(POINTS)}:kill@{self.dice.randint(1, 4)}"
        self.faults.append(point)
        self.workers[name] = self.harness.start_worker(name, **speed(self.rows_per_second), NIGHTMILL_FAILPOINTS=point)

    def flush(self) -> None:
        with redis.Redis(unix_socket_path=str(self.harness.broker.socket)) as client:
            client.flushall()

    def restart(self) -> None:
        """The broker, without its memory."""
        self.harness.broker.stop()
        self.harness.broker = PrivateBroker(self.harness.settings.home)
        self.harness.broker.start()

    def lock(self) -> None:
        """Nobody can write to SQL, now and then for longer than a lease."""
        until = time.monotonic() + self.dice.uniform(0.2, 1.4) * self.harness.settings.lease_seconds
        with closing(sqlite3.connect(self.harness.folder / "harness.db", isolation_level=None, timeout=60)) as sql:
            sql.execute("BEGIN IMMEDIATE")
            wait_for(lambda: time.monotonic() >= until, "SQL is locked for a while")
            sql.execute("ROLLBACK")

    def rot(self) -> None:
        """One file of a finished shard is cut or lost, well before the job is published."""
        job = self.harness.job(self.job_id)
        keys = sorted(shard.out_key for shard in self.harness.shards(self.job_id) if shard.out_key)
        if not keys or job.rows_done > 0.8 * job.rows_total:
            return
        path = Path(job.output_uri) / self.dice.choice(keys)
        if self.dice.random() < 0.5:
            path.unlink(missing_ok=True)
        elif path.exists():
            os.truncate(path, path.stat().st_size // 2)

    def kill_reconciler(self) -> None:
        assert self.reconciler is not None
        self.reconciler.kill()

    def _some_worker(self) -> WorkerProcess:
        return self.workers[self.dice.choice(sorted(self.workers))]
