from __future__ import annotations

import pytest

from engine.cache.manager import KVCache, SequenceBlocks
from engine.step import NULL_BLOCK
from tests.unit.engine.contents import num_free
from tests.unit.engine.harness import FULL, HYBRID, group


def cache_of(*num_blocks: int, **switches: bool) -> KVCache:
    return KVCache(HYBRID, num_blocks, max_chunk=64, **switches)


def start(cache: KVCache, tokens: list[int], job: str = "job") -> SequenceBlocks:
    """Admit the tokens as one chunk."""
    seq = cache.new_sequence(job)
    assert cache.admit(seq, tokens, cache.find(tokens), len(tokens))
    cache.check_integrity()
    return seq


def compute(cache: KVCache, tokens: list[int], job: str = "job") -> SequenceBlocks:
    seq = start(cache, tokens, job)
    cache.commit(seq, tokens, len(tokens))
    cache.check_integrity()
    return seq


def test_nothing_is_found_before_the_step_that_computes_it_has_run() -> None:
    cache = cache_of(30, 30)
    tokens = list(range(17))

    seq = start(cache, tokens)
    assert cache.find(tokens).length == 0

    cache.commit(seq, tokens, 17)
    assert cache.find(tokens).length == 16


def test_a_prefix_being_computed_is_named_until_it_is_there_or_given_up() -> None:
    cache = cache_of(30, 30)
    tokens = list(range(17))

    seq = start(cache, tokens)
    assert cache.find([*tokens[:12], -1]).computing is not None
    assert cache.find([-1, *tokens]).computing is None
    cache.commit(seq, tokens, 12)
    assert cache.find([*tokens[:12], -1]).computing is None
    assert cache.find(tokens).computing is not None
    cache.release(seq)
    assert cache.find(tokens).computing is None
    cache.check_integrity()


def test_admission_that_fails_in_one_group_changes_nothing_in_any() -> None:
    cache = cache_of(30, 5)
    before = num_free(cache)

    seq = cache.new_sequence("job")
    tokens = list(range(40))

    assert not cache.admit(seq, tokens, cache.find(tokens), 40)
    assert num_free(cache) == before
    assert seq.views == ([], [])
    cache.check_integrity()


def test_hits_of_all_groups_are_held_before_any_block_is_allocated() -> None:
    """The blocks of the hit are the oldest that are free: whatever is allocated too early takes them."""
    cache = cache_of(10, 8)
    tokens = list(range(20))
    cache.release(compute(cache, tokens))
    cache.release(compute(cache, [*range(90, 98)]))
    longer = [*tokens, *range(50, 65)]
    hit = cache.find(longer)
    assert hit.length == 20

    seq = start(cache, longer)

    for table, blocks in zip(seq.views, hit.blocks, strict=True):
        assert table[: len(blocks)] == blocks
        held = [block for block in table if block != NULL_BLOCK]
        assert len(held) == len(set(held)), "one block stands in a table twice"
    cache.check_references([seq])
    cache.commit(seq, longer, 35)
    assert cache.find([*longer, -1]).length == 32


def test_hit_blocks_that_wake_up_count_against_the_free_ones() -> None:
    cache = cache_of(6, 6)
    tokens = list(range(16))
    cache.release(compute(cache, tokens))

    longer = [*tokens, *range(50, 58)]
    seq = cache.new_sequence("job")

    assert cache.find(longer).length == 16
    assert not cache.admit(seq, longer, cache.find(longer), 24), "4 woken and 2 new blocks are more than 5"
    assert cache.admit(seq, longer, cache.find(longer), 20)
    cache.check_integrity()


def test_equal_blocks_of_one_step_are_merged_and_the_second_copy_given_back() -> None:
    cache = cache_of(30, 30, use_prefix_sharing=False)
    tokens = list(range(9))
    first, second = start(cache, tokens), start(cache, tokens)
    assert set(first.views[0]).isdisjoint(second.views[0])

    cache.commit(first, tokens, 9)
    cache.commit(second, tokens, 9)

    assert first.views[0][:2] == second.views[0][:2]
    assert first.views[0][2] != second.views[0][2]
    assert second.tables[0].shared == 2
    assert cache.managers[0].pool.num_used == 4
    cache.check_integrity()


def test_without_block_sharing_no_block_is_ever_shared() -> None:
    cache = cache_of(30, 30, allow_block_sharing=False)
    tokens = list(range(9))

    first, second = compute(cache, tokens), compute(cache, tokens)

    assert set(first.views[0]).isdisjoint(second.views[0])
    assert cache.managers[0].pool.num_used == 6
    assert not any(cache.managers[0].pool.node)


def test_blocks_behind_the_window_are_given_back_before_new_ones_are_taken() -> None:
    cache = KVCache([group(0, window=5)], [5], max_chunk=4)
    tokens = list(range(40))
    seq = cache.new_sequence("job")
    assert cache.admit(seq, tokens, cache.find(tokens), 4)

    for computed in range(4, 40, 4):
        cache.commit(seq, tokens, computed)
        assert cache.extend(seq, computed, computed + 4)
        cache.check_integrity()

    table = seq.views[0]
    assert table[:8] == [NULL_BLOCK] * 8
    assert NULL_BLOCK not in table[8:]


def test_the_tables_that_the_runner_holds_are_changed_in_place() -> None:
    cache = cache_of(30, 30)
    tokens = list(range(60))
    seq = cache.new_sequence("job")
    views = seq.views
    assert cache.admit(seq, tokens, cache.find(tokens), 40)
    cache.commit(seq, tokens, 40)
    assert cache.extend(seq, 40, 44)

    assert seq.views is views
    assert views[1][0] == NULL_BLOCK
    assert len(views[1]) == 11
    cache.release(seq)
    assert views == ([], [])


def test_the_leaf_of_a_full_prefix_is_evicted_first() -> None:
    cache = KVCache(FULL, [6], max_chunk=64)
    tokens = list(range(20))
    cache.release(compute(cache, tokens))

    compute(cache, [90, 91])

    assert cache.find([*tokens, -1]).length == 16


def test_the_tail_of_a_sliding_prefix_is_evicted_last() -> None:
    cache = KVCache([group(0, window=5)], [6], max_chunk=64)
    tokens = list(range(20))
    cache.release(compute(cache, tokens))

    compute(cache, [90, 91, 92, 93, 94])

    assert cache.find([*tokens, -1]).length == 20


def test_evicted_content_is_counted_and_told_apart_by_whether_anybody_used_it() -> None:
    cache = KVCache(FULL, [4], max_chunk=64)
    cache.release(compute(cache, [1, 2, 3, 4, 5, 6, 7, 8]))
    cache.release(compute(cache, [1, 2, 3, 4, 9]))

    seq = compute(cache, list(range(20, 32)))

    assert seq.tables[0].evicted == 2
    assert seq.tables[0].evicted_unused == 1
    assert seq.counters()[0].allocated == 3


def test_a_window_dies_with_the_full_prefix_that_it_continues() -> None:
    cache = cache_of(7, 40)
    tokens = list(range(24))
    cache.release(compute(cache, tokens))

    seq = compute(cache, [90, 91, 92, 93, 94])

    assert seq.tables[0].evicted == 2, "the last two full blocks made room"
    assert seq.tables[1].evicted == 2, "the window blocks at the same places are of no use any more"
    assert cache.find([*tokens, -1]).length == 16


def test_a_preempted_sequence_goes_on_though_the_block_behind_its_window_has_gone() -> None:
    cache = KVCache((group(0, window=6),), [7], max_chunk=64)
    tokens = list(range(16))
    seq = cache.new_sequence("job")
    assert cache.admit(seq, tokens, cache.find(tokens), 15)
    cache.commit(seq, tokens, 15)
    cache.suspend(seq, 15)

    compute(cache, list(range(90, 106)))  # takes the two free blocks, then the first two that are cached

    assert cache.find(tokens).length == 0, "a hit of 12 tokens would need the second block"
    assert cache.find(tokens, seq).length == 15


def test_null_entries_count_neither_as_shared_nor_as_allocated() -> None:
    cache = cache_of(30, 30)
    tokens = list(range(40))
    cache.release(compute(cache, tokens))

    seq = start(cache, [*tokens, 99])

    full, sliding = seq.counters()
    assert (full.shared, full.allocated) == (10, 1)
    assert (sliding.shared, sliding.allocated) == (3, 1)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_reuse_falls_gradually_with_pressure(share: float) -> None:
    """A round over more prefixes than fit keeps finding about as many as fit."""
    num_prefixes, rounds = 20, 6
    prefixes = [[number * 100 + at for at in range(40)] for number in range(num_prefixes)]
    full, sliding = int(share * num_prefixes * 11), int(share * num_prefixes * 11)
    cache = KVCache(HYBRID, [full + 30, sliding + 30], max_chunk=64)

    found = 0
    for turn in range(rounds):
        for prefix in prefixes:
            for row in range(2):  # a planned job brings the rows of one prefix together
                tokens = [*prefix, 5000 + turn, 6000 + row, 1, 2, 3]
                found += row == 0 and cache.find(tokens).length >= 40
                cache.release(compute(cache, tokens))

    reuse = found / (num_prefixes * (rounds - 1))
    assert reuse > 0.5 * share
