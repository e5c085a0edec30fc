from __future__ import annotations

from jobs.gate import Gate
from storage.records import ShardId

A, B, C = ShardId(1), ShardId(2), ShardId(3)


def test_an_idle_worker_takes_one_message_and_no_second_until_it_knows_the_first_one_s_size() -> None:
    gate = Gate(slots=16, target=128)
    assert gate.limit == 1

    gate.enter(A)

    assert gate.limit == 1  # A itself fills it


def test_another_message_is_wanted_while_less_than_the_target_is_owed() -> None:
    gate = Gate(slots=16, target=128)
    gate.enter(A)
    gate.owe(A, 100)
    assert gate.limit == 2

    gate.enter(B)
    gate.owe(B, 28)

    assert gate.limit == 0


def test_finished_rows_open_the_gate_again() -> None:
    opened = []
    gate = Gate(slots=16, target=128, on_open=lambda: opened.append(True))
    gate.enter(A)
    gate.owe(A, 500)
    opened.clear()

    gate.owe(A, 128)
    assert opened == []
    gate.owe(A, 127)

    assert opened == [True]
    assert gate.limit == 2


def test_no_more_than_the_slots_run_however_small_the_shards_are() -> None:
    gate = Gate(slots=2, target=128)
    for shard in (A, B):
        gate.enter(shard)
        gate.owe(shard, 1)

    assert gate.limit == 0
    gate.leave(A)
    assert gate.limit == 2


def test_a_shard_in_flight_cannot_enter_twice() -> None:
    gate = Gate(slots=16, target=128)
    assert gate.enter(A)
    assert not gate.enter(A)

    gate.leave(A)

    assert gate.enter(A)


def test_nothing_is_taken_while_any_reason_to_wait_is_left() -> None:
    gate = Gate(slots=16, target=128)
    gate.close("stopping")
    gate.close("no database")
    gate.open("no database")
    assert gate.limit == 0

    gate.open("stopping")

    assert gate.limit == 1


def test_rows_of_a_shard_that_has_left_are_not_counted() -> None:
    gate = Gate(slots=16, target=128)
    gate.enter(A)
    gate.leave(A)

    gate.owe(A, 1000)

    assert gate.limit == 1
    assert gate.in_flight == 0


def test_a_shard_that_runs_alone_waits_for_those_before_it_and_lets_those_behind_it_wait() -> None:
    gate = Gate(slots=16, target=128)
    gate.enter(A)
    gate.enter(B, alone=True)
    gate.enter(C)
    assert [gate.has_turn(shard) for shard in (A, B, C)] == [True, False, False]
    assert gate.limit == 0

    gate.leave(A)
    assert [gate.has_turn(shard) for shard in (B, C)] == [True, False]
    gate.leave(B)

    assert gate.has_turn(C)
    assert gate.limit > 0


def test_of_two_shards_that_run_alone_the_first_to_enter_is_the_first_to_run() -> None:
    gate = Gate(slots=16, target=128)
    gate.enter(A, alone=True)
    gate.enter(B, alone=True)
    assert [gate.has_turn(shard) for shard in (A, B)] == [True, False]

    gate.leave(A)

    assert gate.has_turn(B)


def test_a_signal_handler_may_close_the_gate_while_its_thread_reads_it() -> None:
    gate = Gate(slots=16, target=128)

    with gate._lock:
        gate.close("stopping")

    assert gate.limit == 0
