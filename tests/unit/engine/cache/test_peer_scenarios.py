"""Scenarios that vLLM and transformers test in their caches, in our words. `tests/unit/engine/test_peers.py` has the
rest: where else a scenario is covered, and why some are of no use here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.cache.groups import LayerGroup
from engine.cache.manager import KVCache, SequenceBlocks
from engine.cache.tables import Rank
from engine.errors import RequestRefused
from engine.request import Junction
from engine.step import NULL_BLOCK, BlockCopy
from tests.unit.engine.contents import num_free, ready
from tests.unit.engine.fake_runner import reference
from tests.unit.engine.harness import FULL, HYBRID, LINEAR, Harness, group, request
from tests.unit.engine.planned import planned

PREFIX = list(range(12))


def compute(cache: KVCache, tokens: list[int]) -> SequenceBlocks:
    """Admit the tokens and run them in one chunk."""
    seq = cache.new_sequence("job")
    assert cache.admit(seq, tokens, cache.find(tokens, seq), len(tokens))
    cache.commit(seq, tokens, len(tokens))
    cache.check_integrity()
    return seq


def test_a_prefix_is_hit_in_use_and_after_it_was_freed_and_goes_last() -> None:
    """vLLM test_prefill, test_evict: block ids, references and the order in which blocks are given out."""
    cache = KVCache(FULL, [11], max_chunk=64)
    pool = cache.managers[0].pool

    first = compute(cache, [*PREFIX, 50])
    second = compute(cache, [*PREFIX, 60])
    assert (first.views[0], second.views[0]) == ([1, 2, 3, 4], [1, 2, 3, 5])
    assert [cache.managers[0].num_references(block) for block in (1, 2, 3, 4, 5)] == [2, 2, 2, 1, 1]
    cache.release(first)
    cache.release(second)
    assert pool.num_free == 10
    third = compute(cache, [*PREFIX, 70])
    assert third.views[0][:3] == [1, 2, 3]
    cache.release(third)

    last = compute(cache, [99] * 40)

    assert last.views[0][-3:] == [3, 2, 1], "the prefix goes last, its leaf before its root"
    assert cache.find([*PREFIX, 80]).length == 0


EVICTIONS = {
    "what no token after the hit can see": ({(1, 0)}, 12),
    "the first block of full attention": ({(0, 0)}, 0),
    "the last block everywhere": ({(0, 2), (1, 2)}, 8),
    "the last block of full attention": ({(0, 2)}, 8),
    "the last block of the window": ({(1, 2)}, 8),
    "another place in each group": ({(0, 2), (1, 0)}, 0),
}


@pytest.mark.parametrize(("evicted", "length"), EVICTIONS.values(), ids=EVICTIONS.keys())
def test_groups_that_lost_different_blocks_agree_on_a_length(evicted: set[tuple[int, int]], length: int) -> None:
    """vLLM test_prefill_hybrid_model: one full group, one with a window of two blocks and a token, three blocks."""
    cache = KVCache((group(0), group(1, window=6)), [30, 30], max_chunk=64)
    cache.release(compute(cache, [*PREFIX, 50]))
    path = cache.find([*PREFIX, 60]).path

    for index, position in evicted:
        block, path[position].blocks[index] = path[position].blocks[index], NULL_BLOCK
        cache.managers[index].pool.node[block] = None

    hit = cache.find([*PREFIX, 60])
    assert hit.length == length
    assert [len(blocks) for blocks in hit.blocks] == [length // 4] * 2


COMBINATIONS = {
    "sliding and states": (group(0, window=8), LayerGroup.of_states(1, (1,))),
    "two windows": (group(0, window=8), group(1, window=16)),
    "full and two windows": (group(0), group(1, window=8), group(2, window=16)),
    "two full and a window": (group(0), group(1), group(2, window=8)),
    "interleaved": (group(0), group(1, window=8), group(2), group(3, window=16)),
    "all": (group(0), group(1), group(2, window=8), LayerGroup.of_states(3, (4,))),
    "states first": (LayerGroup.of_states(0, (0,)), group(1, window=8), group(2)),
}


@pytest.mark.parametrize("groups", COMBINATIONS.values(), ids=COMBINATIONS.keys())
def test_every_combination_of_groups_hits_a_common_prefix(groups: tuple[LayerGroup, ...]) -> None:
    """vLLM test_prefill_hybrid_model_combinations: no, one or two full groups among others, in any order."""
    prompts = [[*PREFIX, *range(20, 34), 50, 51], [*PREFIX, *range(20, 34), 60]]
    harness = Harness(groups)

    done = harness.run(*planned(prompts))

    assert done["1", 0].counters.cached_tokens == 26
    assert [done[name, 0].token_ids for name in "01"] == [reference(prompt, 4) for prompt in prompts]


def test_a_block_that_decoding_fills_is_found_from_then_on() -> None:
    """vLLM test_decode, test_cache_blocks: without a new block, with one, and from the middle of the sequence."""
    cache = KVCache(FULL, [11], max_chunk=64)
    tokens = [*PREFIX, 50, 51]
    seq = compute(cache, tokens)

    tokens.append(52)
    assert cache.extend(seq, 14, 15)
    cache.commit(seq, tokens, 15)
    assert (len(seq.views[0]), cache.find([*tokens, 53, 99]).length) == (4, 12)

    tokens += [53, 54]
    assert cache.extend(seq, 15, 17)
    cache.commit(seq, tokens, 17)
    assert (len(seq.views[0]), cache.find([*tokens, 99]).length) == (5, 16)


def test_a_block_that_is_given_out_again_has_lost_its_content() -> None:
    """vLLM test_hash_block_correct_reuse: the only block was cached, and is then begun by another prompt."""
    cache = KVCache(FULL, [2], max_chunk=64)
    cache.release(compute(cache, [1, 2, 3, 4]))
    assert cache.find([1, 2, 3, 4, 5]).length == 4

    seq = compute(cache, [1, 2, 3])

    assert seq.views[0] == [1]
    assert cache.find([1, 2, 3, 4, 5]).path == []


def test_a_hit_that_cannot_be_admitted_is_left_as_it_was() -> None:
    """vLLM test_prefill_not_enough_free_blocks_with_computed_blocks: references and free blocks stay."""
    cache = KVCache(HYBRID, [11, 11], max_chunk=64)
    held = compute(cache, [*PREFIX])
    cache.release(compute(cache, [*PREFIX, *PREFIX]))
    compute(cache, [7] * 8)
    longer = [*PREFIX, *PREFIX, *PREFIX]
    hit = cache.find(longer)
    assert hit.length == 24
    seq = cache.new_sequence("job")
    before = [list(manager.pool.ref) for manager in cache.managers]

    assert not cache.admit(seq, longer, hit, 36)

    assert [list(manager.pool.ref) for manager in cache.managers] == before
    assert held.views[0][:3] == hit.blocks[0][:3]
    assert (seq.views, seq.path) == (([], []), [])
    assert cache.find(longer).length == 24
    cache.check_integrity()


def test_a_pool_of_the_least_size_takes_the_longest_prompt_and_no_longer_one() -> None:
    """vLLM test_can_fit_full_sequence_*, transformers test_continuous_batching_can_store_request_tokens: the window
    asks for no more than its peak, full attention for every token."""
    full, window = HYBRID
    harness = Harness(
        HYBRID, num_blocks=[1 + full.peak_blocks(80, 16), 1 + window.peak_blocks(80, 16)], max_batch_tokens=16
    )
    assert window.peak_blocks(80, 16) < full.peak_blocks(80, 16)

    done = harness.run(request("longest", range(73), 8))

    assert done["longest", 0].token_ids == reference(range(73), 8)
    with pytest.raises(RequestRefused, match="even when empty"):
        harness.scheduler.submit(request("longer", range(74), 8))


def test_a_planned_junction_outlives_states_that_were_kept_on_suspicion() -> None:
    """vLLM test_mamba_shared_prefix_survives_zero_retention: what others will start from is kept for them, while
    slots are short and other prompts part as well."""
    harness = Harness(LINEAR, num_blocks=[200, 1 + 4], max_sequences=1)
    first = replace(request("first", [*PREFIX, 1, 2], 1), junctions=(Junction(10, 1),))
    user = replace(request("user", [*range(10), 5], 1), planned_tokens=10)
    others = [request(f"{n}.{tail}", [60 + n] * 9 + [tail], 1) for n in range(4) for tail in (1, 2)]

    harness.scheduler.submit(first)
    for item in others:
        harness.scheduler.submit(item)
    harness.scheduler.submit(user)
    most_loose = 0
    while harness.scheduler.num_running + harness.scheduler.num_waiting:
        harness.step()
        most_loose = max(most_loose, sum(each.rank is Rank.LOOSE for each in ready(harness.cache)))

    assert most_loose > 1
    assert harness.completions[-1].request_id == "user"
    assert harness.completions[-1].counters.cached_tokens == 10


@pytest.mark.parametrize("window", [1, 2, 4, 5, 9])
def test_exactly_the_blocks_that_no_later_token_sees_are_dropped(window: int) -> None:
    """vLLM test_sliding_window_remove_skipped_blocks: after each token, and never twice."""
    cache = KVCache([group(0, window=window)], [30], max_chunk=64)
    tokens = list(range(40))
    seq = compute(cache, tokens)
    manager, free = cache.managers[0], num_free(cache)[0]

    for computed in range(41):
        manager.drop_behind(seq.tables[0], computed, "job")

        seen = {position // 4 for position in range(max(0, computed - window + 1), 40)}
        assert {place for place, block in enumerate(seq.views[0]) if block != NULL_BLOCK} == seen
        assert num_free(cache)[0] == free + 10 - len(seen)
    cache.check_integrity()


def test_a_fork_shares_whole_blocks_and_copies_the_one_that_is_begun() -> None:
    """transformers test_fork_blocks_sharing_and_copy: also in a window, which they copy, and with a last user."""
    cache = KVCache(HYBRID, [30, 30], max_chunk=64)
    tokens = list(range(18))
    seq = compute(cache, tokens)

    start = cache.fork(seq, 18, num_siblings=2)

    assert start is not None
    assert [table.blocks[:4] for table in start.tables] == [seq.views[0][:4], [0, 0, *seq.views[1][2:4]]]
    copies = cache.take_copies()
    assert copies == tuple(BlockCopy(g, seq.views[g][4], start.tables[g].blocks[4]) for g in (0, 1))
    siblings = []
    for token in (70, 71):
        sibling = cache.new_sequence("job")
        sibling.kept, sibling.has_started = start, True
        hit = cache.find([*tokens, token], sibling)
        assert (hit.length, hit.takes_over) == (18, len(siblings) == 1)
        assert cache.admit(sibling, [*tokens, token], hit, 19)
        siblings.append(sibling)
    assert len({table.views[0][4] for table in (seq, *siblings)}) == 3
    assert {cache.managers[0].num_references(block) for block in seq.views[0][:4]} == {3}
    for each in (seq, *siblings):
        cache.release(each)
    assert num_free(cache) == (29, 29)
    cache.check_integrity()
