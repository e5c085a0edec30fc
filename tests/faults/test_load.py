"""Ten thousand shards and sixteen workers on PostgreSQL: how fast shards are claimed, and what the reconciler costs."""

from __future__ import annotations

import queue
import threading
import time

import pytest

from jobs.dispatch import Dispatcher
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from storage import migrate
from storage.records import Hint, WorkerRecord
from storage.repository import Repository
from storage.states import ShardState
from tests.conformance.samples import LEASE, finish, queued_job
from tests.faults.harness import wait_for

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1500)]

NUM_SHARDS, NUM_WORKERS = 10_000, 16


class Load:
    """Workers that only claim, seal and commit, and a reconciler that feeds them."""

    def __init__(self, url: str) -> None:
        self.repository = Repository(f"{url}&options=-c%20lock_timeout%3D5s")  # a lock waited for longer fails the test
        self.hints: queue.Queue[Hint] = queue.Queue()
        self.claims: list[float] = []  # seconds of each
        self.failures: list[Exception] = []
        self.reconciler_seconds = 0.0
        self.stop = threading.Event()

    def work(self, name: str) -> None:
        try:
            while not self.stop.is_set():
                try:
                    hint = self.hints.get(timeout=0.2)
                except queue.Empty:
                    continue
                asked = time.monotonic()
                claim = self.repository.claim_shard(hint.shard_id, name, LEASE)
                self.claims.append(time.monotonic() - asked)
                if claim is not None:
                    finish(self.repository, claim.shard, succeeded=1)
        except Exception as error:  # noqa: BLE001 - the test shows it
            self.failures.append(error)
            self.stop.set()

    def reconcile(self, reconciler: Reconciler) -> None:
        while not self.stop.is_set():
            began = time.thread_time()
            for _ in self.repository.expire_leases(5):
                raise AssertionError("a lease ended under load")
            reconciler._dispatcher.fill()
            self.reconciler_seconds += time.thread_time() - began
            self.stop.wait(1.0)


def test_ten_thousand_shards_and_sixteen_workers(postgres_url: str) -> None:
    migrate.upgrade(postgres_url)
    load = Load(postgres_url)
    job = queued_job(load.repository, num_shards=NUM_SHARDS, rows=1)
    for number in range(NUM_WORKERS):
        load.repository.register_worker(_worker(f"gpu{number}@a", job.model.key))
    dispatcher = Dispatcher(
        repository=load.repository,
        publish=load.hints.put,
        queue_length=lambda key: load.hints.qsize(),
        slots=16,
        stale_seconds=600.0,
        worker_stale_seconds=600.0,
    )
    reconciler = Reconciler(Settings(), load.repository, dispatcher)
    threads = [threading.Thread(target=load.work, args=(f"gpu{i}@a",)) for i in range(NUM_WORKERS)]
    threads.append(threading.Thread(target=load.reconcile, args=(reconciler,)))
    began = time.monotonic()

    for thread in threads:
        thread.start()
    wait_for(
        lambda: load.stop.is_set() or load.repository.get_job(job.id).shards_done == NUM_SHARDS, "all are done", 1200
    )
    took = time.monotonic() - began
    load.stop.set()
    for thread in threads:
        thread.join()

    print(
        f"{NUM_SHARDS / took:.0f} claims/s, longest {max(load.claims):.3f} s, "
        f"reconciler {100 * load.reconciler_seconds / took:.2f} % of a CPU"
    )
    assert load.failures == []
    assert {shard.state for shard in load.repository.shards(job.id)} == {ShardState.DONE}
    assert {shard.attempts for shard in load.repository.shards(job.id)} == {1}
    assert load.reconciler_seconds < 0.05 * took
    load.repository.check_integrity()
    load.repository.close()


def _worker(name: str, model_key: str) -> WorkerRecord:
    return WorkerRecord(
        id=name,
        boot_id="boot",
        model_key=model_key,
        model_source="org/model",
        device="cpu",
        state="ready",
        heartbeat_age=0.0,
    )
