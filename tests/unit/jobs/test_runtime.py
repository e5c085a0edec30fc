from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from jobs import runtime as module
from jobs.gate import Gate
from jobs.restarts import EXIT_ENGINE_DEAD
from jobs.runtime import Runtime, Watchdog
from jobs.settings import Settings
from storage.errors import Fenced
from storage.records import ShardId


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 0.5  # so that a loop that waits on it comes to an end
        return self.now


class FakeEngine:
    alive = True
    load = 0
    age = 0.0

    def last_step_age(self) -> float:
        return self.age


class Bench:
    """A watchdog over a worker that does nothing."""

    def __init__(self, *, nobody_waits: bool | None = None) -> None:
        self.engine = FakeEngine()
        self.gate = Gate(slots=4, target=10)
        self.said: list[str] = []
        self.broker_answers = True
        self.leases = SimpleNamespace(
            say=self.said.append, beat=lambda: self.said.append("beat"), replaced=None, drain_requested=False
        )
        self.disk = SimpleNamespace(short=[], short_of=lambda: self.disk.short)
        tools = SimpleNamespace(
            engine=self.engine,
            gate=self.gate,
            leases=self.leases,
            disk=self.disk,
            settings=Settings(idle_exit_seconds=10, stop_seconds=5, engine_stall_seconds=100, loop_stall_seconds=100),
            stopping=threading.Event(),
        )
        self.runtime = Runtime(tools)  # type: ignore[arg-type]
        self.stops: list[bool] = []
        self.exits: list[int] = []
        self.clock = Clock()
        self.watchdog = Watchdog(
            self.runtime,
            stop=lambda: self.stops.append(True),
            nobody_waits=None if nobody_waits is None else lambda: nobody_waits,
            exit_now=self.exits.append,
            broker_answers=lambda: self.broker_answers,
            monotonic=self.clock,
        )

    def look_after(self, seconds: float) -> None:
        self.clock.now += seconds
        self.watchdog.look()


def test_a_dead_engine_ends_the_process_with_70() -> None:
    bench = Bench()
    bench.engine.alive = False

    bench.watchdog.look()

    assert bench.exits == [EXIT_ENGINE_DEAD] == [70]
    assert bench.said == ["gone", "beat"]
    assert bench.gate.limit == 0


def test_an_engine_with_rows_and_no_step_for_too_long_is_dead_and_an_idle_one_is_not() -> None:
    bench = Bench()
    bench.engine.age = 101
    bench.watchdog.look()
    assert bench.exits == []

    bench.engine.load = 1
    bench.watchdog.look()

    assert bench.exits == [EXIT_ENGINE_DEAD]


def test_an_event_loop_that_hangs_ends_the_process_unless_it_waits_for_the_broker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench()
    bench.runtime.tick()
    monkeypatch.setattr(Runtime, "loop_age", 101.0)
    bench.broker_answers = False
    bench.watchdog.look()
    assert bench.exits == []

    bench.broker_answers = True
    bench.watchdog.look()
    assert bench.exits == []
    bench.look_after(61)

    assert bench.exits == [EXIT_ENGINE_DEAD]
    assert bench.runtime.tools.stopping.is_set()


def test_an_event_loop_that_waited_for_the_broker_has_time_to_find_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.runtime.tick()
    monkeypatch.setattr(Runtime, "loop_age", 600.0)

    for answers in (False, True, False, True):
        bench.broker_answers = answers
        bench.look_after(40)

    assert bench.exits == []
    monkeypatch.setattr(Runtime, "loop_age", 0.5)
    bench.look_after(300)
    assert bench.exits == []


def test_an_orderly_stop_that_takes_too_long_ends_by_force() -> None:
    bench = Bench()
    bench.runtime.drain()
    bench.look_after(0)
    bench.look_after(3)
    assert bench.exits == []

    bench.look_after(3)

    assert bench.exits == [1]
    assert bench.said == ["draining"]


def test_a_watchdog_that_fails_in_one_look_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, looks = Bench(), [ZeroDivisionError("ours")]

    def last_step_age() -> float:
        if looks:
            raise looks.pop()
        return 101.0

    exited = threading.Event()
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.001)
    monkeypatch.setattr(bench.engine, "last_step_age", last_step_age)
    monkeypatch.setattr(bench.watchdog, "_exit_now", lambda code: exited.set())
    bench.engine.load = 1

    bench.watchdog.start()

    assert exited.wait(10)
    bench.watchdog.end()


def test_a_worker_leaves_when_it_was_idle_long_enough_and_nobody_waits() -> None:
    bench = Bench(nobody_waits=True)
    bench.look_after(5)
    assert bench.stops == []

    bench.look_after(6)

    assert bench.stops == [True]


def test_a_worker_stays_while_it_works_while_somebody_waits_and_when_it_was_given_its_model() -> None:
    busy, wanted, fixed = Bench(nobody_waits=True), Bench(nobody_waits=False), Bench()
    busy.gate.enter(ShardId(1))

    for bench in (busy, wanted, fixed):
        bench.look_after(100)

    assert busy.stops == wanted.stops == fixed.stops == []


def test_a_worker_whose_name_another_process_has_is_told_once_to_leave_in_order() -> None:
    bench = Bench()
    bench.leases.replaced = Fenced("worker name w0 belongs to another process")

    bench.watchdog.look()
    bench.watchdog.look()

    assert (bench.stops, bench.exits) == ([True], [])


def test_a_worker_that_is_asked_to_drain_takes_nothing_new_and_leaves_when_its_last_shard_has_ended() -> None:
    bench = Bench()
    bench.gate.enter(ShardId(1))
    bench.leases.drain_requested = True

    bench.watchdog.look()
    assert (bench.gate.limit, bench.stops, bench.said) == (0, [], ["draining"])
    bench.gate.leave(ShardId(1))
    bench.watchdog.look()
    bench.watchdog.look()

    assert bench.stops == [True]
    assert bench.runtime.health().notice == "draining"


def test_while_a_disk_has_no_room_nothing_is_taken() -> None:
    bench = Bench()
    bench.disk.short = ["/out"]
    bench.look_after(2)
    assert bench.gate.limit == 0
    assert bench.runtime.health().notice == "no room on the disk"

    bench.disk.short = []
    bench.look_after(2)

    assert bench.gate.limit == 1
    assert bench.runtime.health().notice is None


def test_health_tells_the_ages_of_loop_and_engine() -> None:
    bench = Bench()
    bench.engine.age = 7.5
    assert bench.runtime.health().loop_age is None

    bench.runtime.tick()

    health = bench.runtime.health()
    assert health.step_age == 7.5
    assert health.loop_age is not None
    assert 0 <= health.loop_age < 5
