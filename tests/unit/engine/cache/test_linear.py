"""State slots: one per running sequence, given back whatever happens to it, and a budget of their own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.groups import LayerGroup
from engine.cache.linear import SlotPool
from engine.cache.manager import KVCache
from engine.errors import ConfigError
from engine.request import GroupCounters
from engine.step import NULL_BLOCK
from tests.unit.engine.contents import num_free
from tests.unit.engine.fake_runner import reference
from tests.unit.engine.harness import LINEAR, STATES, Harness, group, prefix_rows, request, total


@settings(deadline=None)
@given(st.integers(2, 9), st.lists(st.integers(0, 20), max_size=60))
def test_a_slot_is_with_one_taker_or_free_and_never_lost(num_slots: int, choices: list[int]) -> None:
    pool = SlotPool(num_slots)
    held: list[int] = []

    for choice in choices:
        if held and (choice % 2 or not pool.num_free):
            pool.give_back(held.pop(choice % len(held)))
        else:
            held.append(pool.take())
        pool.check_integrity()

        assert len(set(held)) == len(held) == pool.num_used
        assert NULL_BLOCK not in held


def test_the_lowest_free_slot_goes_out_first() -> None:
    pool = SlotPool(5)
    assert [pool.take() for _ in range(4)] == [1, 2, 3, 4]

    pool.give_back(3)
    pool.give_back(1)

    assert [pool.take(), pool.take()] == [1, 3]


def test_a_slot_given_back_twice_is_a_bug() -> None:
    pool = SlotPool(3)
    slot = pool.take()
    pool.give_back(slot)

    with pytest.raises(AssertionError, match="given back twice"):
        pool.give_back(slot)


def test_a_pool_of_the_reserved_slot_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="slot 0 is reserved"):
        SlotPool(1)


def test_a_sequence_keeps_its_slot_however_long_it_grows() -> None:
    cache = KVCache(LINEAR, [40, 3], max_chunk=8)
    tokens = list(range(100))
    seq = cache.new_sequence("job")
    assert cache.admit(seq, tokens, cache.find(tokens), 8)
    slot = list(seq.views[1])

    for computed in range(8, 96, 8):
        cache.commit(seq, tokens, computed)
        assert cache.extend(seq, computed, computed + 8)
        cache.check_integrity()

    assert seq.views[1] == slot != [NULL_BLOCK]
    assert seq.counters()[1] == GroupCounters(allocated=1)
    cache.release(seq)
    assert cache.managers[1].pool.num_free == 2
    cache.check_integrity()


def test_equal_blocks_are_merged_and_states_are_not() -> None:
    cache = KVCache(LINEAR, [40, 4], max_chunk=64, use_prefix_sharing=False)
    tokens = list(range(17))
    sequences = [cache.new_sequence("job") for _ in range(2)]

    for seq in sequences:
        assert cache.admit(seq, tokens, cache.find(tokens), 17)
        cache.commit(seq, tokens, 17)
    first, second = sequences

    assert cache.find(tokens).length == 0
    assert first.views[0][:4] == second.views[0][:4]
    assert first.views[1] != second.views[1]
    cache.check_integrity()


def test_admission_without_a_free_slot_changes_nothing() -> None:
    cache = KVCache(LINEAR, [40, 2], max_chunk=64)
    assert cache.admit(cache.new_sequence("job"), [1, 2], cache.find([1, 2]), 2)
    before = num_free(cache)

    assert not cache.admit(cache.new_sequence("job"), [3, 4], cache.find([3, 4]), 2)
    assert num_free(cache) == before
    cache.check_integrity()


def test_slots_limit_how_many_run_at_once() -> None:
    harness = Harness(LINEAR, num_blocks=[200, 4])
    rows = [request(name, prompt) for name, prompt in prefix_rows(7)]
    for row in rows:
        harness.scheduler.submit(row)

    most = 0
    while harness.scheduler.num_waiting + harness.scheduler.num_running:
        harness.step()
        most = max(most, harness.scheduler.num_running)

    assert most == 3
    harness.check_all_returned()
    assert harness.cache.block_use("job")[1].peak == 3
    assert total(harness).completion_tokens == 7 * 8


def test_a_preempted_sequence_takes_a_slot_again_and_an_aborted_one_gives_it_back() -> None:
    harness = Harness(LINEAR, num_blocks=[13, 9])
    harness.scheduler._admission._output_ratio = 0.0
    ids = [i for n in range(4) for i in harness.scheduler.submit(request(str(n), [n, 1, 2], 30))]

    while not any(seq.preemptions for seq in harness.scheduler._sequences.values()):
        harness.scheduler._admission._output_ratio = 0.0
        harness.step()
    finished = [harness.scheduler.abort(sequence_id) for sequence_id in ids[:-1]]
    harness.scheduler.check_integrity()
    harness.run()

    assert all(item is not None for item in finished), "nobody was to finish before the first preemption"
    last = harness.completions[-1]
    assert last.token_ids == reference([3, 1, 2], 30)
    assert last.counters.preemptions > 0
    assert 1 <= last.counters.groups[1].allocated <= 1 + last.counters.preemptions


def test_a_model_of_states_alone_needs_no_blocks() -> None:
    harness = Harness((STATES,), num_blocks=[3], max_sequences=8)

    done = harness.run(*[request(name, prompt, 20) for name, prompt in prefix_rows(5)])

    assert len(done) == 5
    assert total(harness).groups == (GroupCounters(allocated=5),)


def test_the_linear_group_of_a_model_has_layers_and_no_blocks() -> None:
    item = LayerGroup.of_states(2, (1, 4))

    assert (item.kind, item.layers, item.window, item.block_size) == ("linear", (1, 4), None, 0)
    assert not item.has_blocks
    assert group(0).has_blocks
    assert item.block_bytes(4) == 0
