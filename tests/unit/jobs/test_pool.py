"""The pool without a worker around it: callbacks as Celery's consumer passes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError

from jobs.gate import Gate
from jobs.pool import Cancels, ShardPool


class FakeRuntime:
    def __init__(self) -> None:
        self.cancels = Cancels()
        self.gate = Gate(slots=4, target=10)
        self.tick = lambda: None
        self.drained: list[bool] = []

    def drain(self) -> None:
        self.drained.append(True)


class FakeApp:
    def __init__(self) -> None:
        self.runtime = FakeRuntime()


@pytest.fixture
def pool() -> Iterator[ShardPool]:
    started = ShardPool(limit=2, app=FakeApp())
    started.start()
    yield started
    started.stop()


@pytest.mark.parametrize("error", [SystemExit(1), MemoryError(), KeyboardInterrupt()])
def test_whatever_a_task_raises_frees_its_slot_and_reaches_the_error_callback(
    pool: ShardPool, error: BaseException
) -> None:
    failures: list[Any] = []
    told = threading.Event()

    def task() -> None:
        raise error

    def note(info: Any) -> None:
        failures.append(info)
        told.set()

    for _ in range(4):  # twice as many as there are slots
        told.clear()
        pool.apply_async(task, callback=note, error_callback=note)
        assert told.wait(5)

    assert [type(info.exception.exc) for info in failures] == [WorkerLostError] * 4


def test_terminating_a_job_asks_its_own_task_to_end(pool: ShardPool) -> None:
    pids: list[int] = []
    asked: list[bool] = []
    accepted, done = threading.Event(), threading.Event()

    def task() -> None:
        asked.append(pool.cancels.current.wait(5))

    def accept(pid: int, _: float) -> None:
        pids.append(pid)
        accepted.set()

    pool.apply_async(task, accept_callback=accept, callback=lambda _: done.set())
    assert accepted.wait(5)

    pool.terminate_job(pids[0])

    assert done.wait(5)
    assert asked == [True]


def test_each_running_task_has_its_own_id_and_an_ended_one_cannot_be_cancelled(pool: ShardPool) -> None:
    pids: list[int] = []
    both = threading.Barrier(3)
    for _ in range(2):
        pool.apply_async(both.wait, accept_callback=lambda pid, _: pids.append(pid), callback=lambda _: None)
    both.wait(5)

    assert len(set(pids)) == 2
    pool.terminate_job(12345)


def test_the_gate_says_how_many_messages_may_be_held(pool: ShardPool) -> None:
    assert pool.num_processes == 1

    pool.gate.close("stopping")

    assert pool.num_processes == 0


def test_outside_a_task_nobody_is_cancelled() -> None:
    cancels = Cancels()
    cancels.cancel_all()

    assert not cancels.current.is_set()


def test_a_pool_that_closes_lets_its_tasks_end_instead_of_waiting_for_them(pool: ShardPool) -> None:
    pool.close()

    assert pool.app.runtime.drained == [True]


def test_a_stop_that_interrupts_the_start_of_a_task_does_not_wait_for_it(pool: ShardPool) -> None:
    with pool.executor._shutdown_lock:  # as a signal handler finds it in the middle of a submit
        pool.on_stop()

    assert pool.app.runtime.drained == [True]
