"""Random faults on a running job, for a while: from one seed, so that a run can be had again."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass, field

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
    asleep: list[WorkerProcess] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def run(self, seconds: float, pause: float) -> None:
        """Raises AssertionError with the seed when something does not come back."""
        until = time.monotonic() + seconds
        self.tend()
        while time.monotonic() < until and self.harness.job(self.job_id).state not in JOB_FINAL:
            fault = self.dice.choice((self.kill, self.kill, self.sleep, self.stop, self.flush, self.restart, self.arm))
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

    def _some_worker(self) -> WorkerProcess:
        return self.workers[self.dice.choice(sorted(self.workers))]
