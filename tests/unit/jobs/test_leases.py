from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import pytest

from jobs.leases import LeaseKeeper
from storage.errors import DatabaseDown, Fenced
from storage.records import Beat, Health, ShardId

A, B = ShardId(1), ShardId(2)


@dataclass
class FakeSql:
    """Answers heartbeats as it was told to."""

    held: set[ShardId] = field(default_factory=set)
    cancelled: set[ShardId] = field(default_factory=set)
    aborted: set[ShardId] = field(default_factory=set)
    paused: set[ShardId] = field(default_factory=set)
    down: bool = False
    fenced: bool = False
    asked: list[list[tuple[ShardId, int]]] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    healths: list[Health] = field(default_factory=list)
    drains: bool = False

    def heartbeat(self, owner: str, held: Collection[tuple[ShardId, int]], lease_seconds: float) -> Beat:
        if self.down:
            raise DatabaseDown("down")
        self.asked.append(sorted(held))
        return Beat(
            held=frozenset(self.held),
            cancelled=frozenset(self.cancelled),
            aborted=frozenset(self.aborted),
            paused=frozenset(self.paused),
        )

    def beat_worker(self, worker_id: str, boot_id: str, state: str, health: Health) -> bool:
        if self.fenced:
            raise Fenced(f"worker name {worker_id} belongs to another process")
        if self.down:
            raise DatabaseDown("down")
        self.states.append(state)
        self.healths.append(health)
        return self.drains


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def keeper(sql: FakeSql, clock: Clock) -> LeaseKeeper:
    return LeaseKeeper(sql, "w0", "boot", lease_seconds=60, heartbeat_seconds=10, monotonic=clock)  # type: ignore[arg-type]


def test_all_leases_are_renewed_in_one_question() -> None:
    sql = FakeSql(held={A, B})
    leases = keeper(sql, Clock())
    first, second = leases.hold(A, 3), leases.hold(B, 1)

    leases.beat()

    assert sql.asked == [[(A, 3), (B, 1)]]
    assert not first.lost
    assert not second.lost


def test_a_shard_that_the_answer_does_not_name_is_lost_for_good() -> None:
    sql = FakeSql(held={B})
    leases = keeper(sql, Clock())
    lost, kept = leases.hold(A, 3), leases.hold(B, 1)
    leases.beat()
    sql.held = {A, B}

    leases.beat()

    assert lost.lost
    assert not kept.lost


def test_a_cancel_arrives_with_the_heartbeat() -> None:
    sql = FakeSql(held={A}, cancelled={A})
    leases = keeper(sql, Clock())
    lease = leases.hold(A, 1)

    leases.beat()

    assert lease.cancelled
    assert not lease.lost


def test_a_flag_that_was_heard_once_stays() -> None:
    sql = FakeSql(held={A}, aborted={A}, paused={A})
    leases = keeper(sql, Clock())
    lease = leases.hold(A, 1)
    leases.beat()
    sql.aborted, sql.paused = set(), set()

    leases.beat()

    assert (lease.aborted, lease.paused, lease.cancelled) == (True, True, False)


def test_while_sql_is_down_no_lease_is_lost_but_silence_grows_from_the_last_good_question() -> None:
    sql, clock = FakeSql(held={A}), Clock()
    leases = keeper(sql, clock)
    lease = leases.hold(A, 1)
    leases.beat()
    sql.down = True
    clock.now += 61

    with pytest.raises(DatabaseDown):
        leases.beat()

    assert not lease.lost
    assert leases.silent_for == 61


def test_a_lease_counts_from_when_its_heartbeat_was_sent_however_late_the_answer_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sql, clock = FakeSql(held={A}), Clock()
    leases = keeper(sql, clock)
    leases.hold(A, 1)
    answer = sql.heartbeat

    def slowly(*arguments: Any) -> Beat:
        clock.now += 7
        return answer(*arguments)

    monkeypatch.setattr(sql, "heartbeat", slowly)

    leases.beat()

    assert leases.silent_for == 7


def test_a_name_that_another_process_has_is_noticed_and_an_outage_is_not_taken_for_it() -> None:
    sql, beaten = FakeSql(down=True), threading.Event()
    leases = LeaseKeeper(
        sql,  # type: ignore[arg-type]
        "w0",
        "boot",
        lease_seconds=60,
        heartbeat_seconds=0.001,
        on_health=lambda healthy: beaten.set(),
    )
    leases.start()
    assert beaten.wait(10)
    assert leases.replaced is None

    sql.fenced = True
    beaten.clear()
    assert beaten.wait(10)
    beaten.clear()
    assert beaten.wait(10)
    leases.stop()

    assert leases.replaced is not None
    assert "another process" in str(leases.replaced)


def test_a_heartbeat_that_fails_by_a_mistake_is_not_the_last() -> None:
    sql, healths = FakeSql(), [Health(step_age=1.0)]
    leases = LeaseKeeper(sql, "w0", "boot", lease_seconds=60, heartbeat_seconds=0.001)  # type: ignore[arg-type]
    mistakes = iter([ZeroDivisionError("ours")])

    def health() -> Health:
        if mistake := next(mistakes, None):
            raise mistake
        said.set()
        return healths[0]

    said = threading.Event()
    leases.health = health

    leases.start()

    assert said.wait(10)
    leases.stop()
    assert sql.healths[:1] == healths


def test_a_dropped_lease_is_not_renewed_and_the_worker_still_says_that_it_lives() -> None:
    sql = FakeSql()
    leases = keeper(sql, Clock())
    leases.drop(leases.hold(A, 1))
    leases.say("draining")

    leases.beat()

    assert sql.asked == []
    assert sql.states == ["draining"]


def test_a_heartbeat_says_how_the_worker_is_and_hears_once_and_for_all_that_it_is_to_drain() -> None:
    sql = FakeSql()
    leases = keeper(sql, Clock())
    leases.health = lambda: Health(step_age=2.0)
    leases.beat()
    assert not leases.drain_requested

    for sql.drains in (True, False):
        leases.beat()

    assert leases.drain_requested
    assert sql.healths == [Health(step_age=2.0)] * 3
