"""Rows 6 to 8 and 10 to 14: a broker that forgets, dies, hangs, fills up or refuses, and the links to it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from jobs.broker import PrivateBroker
from storage.records import JobId
from tests.faults.harness import Harness, WorkerProcess, prompts, speed, wait_for
from tests.faults.proxy import DOWN, Proxy

pytestmark = pytest.mark.integration

ROWS = 96


@dataclass(slots=True)
class Linked:
    """A harness whose worker reaches the broker through a proxy, with a job on its way."""

    harness: Harness
    proxy: Proxy
    worker: WorkerProcess
    job_id: JobId

    @property
    def redis(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.harness.broker.socket))

    def stalls(self) -> None:
        """Wait until nothing runs and nothing begins, although shards are left."""
        idle_since = time.monotonic()

        def is_idle() -> bool:
            nonlocal idle_since
            if any(shard.lease_owner for shard in self.harness.shards(self.job_id)):
                idle_since = time.monotonic()
            return time.monotonic() - idle_since > 0.8

        wait_for(is_idle, "what had begun is finished, and nothing begins")
        job = self.harness.job(self.job_id)
        assert job.shards_done < job.shards_total, "the fault came too late to hurt"

    def ends_well(self, *, started_once: bool = True) -> None:
        """The job completes, its worker lives, and no shard was started a second time."""
        self.harness.done(self.job_id, ROWS)
        assert self.worker.process.poll() is None, self.worker.text
        if started_once:
            assert {shard.attempts for shard in self.harness.shards(self.job_id)} == {1}


@pytest.fixture
def linked(tmp_path: Path) -> Iterator[Linked]:
    with Harness.create(tmp_path, worker_slots=2) as harness, Proxy(str(harness.broker.socket)) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        worker = harness.start_worker("w0", NIGHTMILL_BROKER_URL=url, **speed(40))
        job = harness.submit(prompts(ROWS), shard_rows=4)
        harness.wait_for_rows(job.id, 4)
        yield Linked(harness, proxy, worker, job.id)


def test_06_a_broker_that_forgets_everything_again_and_again(linked: Linked) -> None:
    for rows in (8, 20, 32, 44, 56):
        linked.harness.wait_for_rows(linked.job_id, rows)
        linked.redis.flushall()

    linked.ends_well()


def test_07_a_broker_that_is_killed_and_starts_empty(linked: Linked) -> None:
    restart(linked.harness)

    linked.ends_well()


def test_08_a_broker_that_is_killed_and_starts_with_old_hints(linked: Linked) -> None:
    key = next(key for key in linked.redis.keys("nightmill:m.*") if linked.redis.type(key) == b"list")
    hints = linked.redis.lrange(key, 0, -1)
    assert hints
    wait_for(lambda: linked.redis.llen(key) == 0, "the hints are taken")

    restart(linked.harness)
    linked.redis.rpush(key, *hints)

    linked.ends_well()


def test_10_a_broker_that_hangs(linked: Linked) -> None:
    assert linked.harness.broker.pid is not None
    broker = linked.harness.broker.pid
    linked.harness.stop_reconciler()  # its thread would hang with the broker

    for number, seconds in ((signal.SIGSTOP, 4.0), (signal.SIGCONT, 0.0)):
        os.kill(broker, number)
        waited = time.monotonic()
        wait_for(lambda waited=waited, seconds=seconds: time.monotonic() - waited >= seconds, "time passes")
    linked.harness.start_reconciler()

    linked.ends_well()


def test_11_a_storm_of_resets(linked: Linked) -> None:
    links = 0

    for _ in range(10):
        links += linked.proxy.reset()
        links_are_back = linked.proxy.accepted
        wait_for(lambda known=links_are_back: linked.proxy.accepted > known, "the worker links up again", 15)

    assert links >= 10
    linked.ends_well()


def test_12_answers_that_do_not_arrive(linked: Linked) -> None:
    linked.proxy.dropped = {DOWN}
    linked.stalls()

    linked.proxy.heal()

    linked.ends_well()


def test_13_a_broker_without_memory(linked: Linked) -> None:
    linked.redis.config_set("maxmemory", 1)
    linked.stalls()

    linked.redis.config_set("maxmemory", 0)

    linked.ends_well()


@pytest.mark.parametrize(
    ("spoil", "mend"),
    [(("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")), (None, None)],
    ids=["READONLY", "NOREPLICAS"],
)
def test_14_a_broker_that_takes_no_writes(
    linked: Linked, spoil: tuple[str, ...] | None, mend: tuple[str, ...] | None
) -> None:
    linked.redis.execute_command(*(spoil or ("CONFIG", "SET", "min-replicas-to-write", "1")))
    linked.stalls()

    linked.redis.execute_command(*(mend or ("CONFIG", "SET", "min-replicas-to-write", "0")))

    linked.ends_well()


def restart(harness: Harness) -> None:
    """kill -9, and another one without its memory."""
    assert harness.broker.pid is not None
    os.kill(harness.broker.pid, signal.SIGKILL)
    wait_for(lambda: not harness.broker.alive, "the broker is dead")
    harness.broker = PrivateBroker(harness.settings.home)
    harness.broker.start()
