from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.manager import KVCache
from tests.unit.engine.harness import group


@settings(deadline=None)
@given(st.sampled_from([None, 1, 2, 4, 5, 9, 16]), st.integers(1, 6), st.lists(st.integers(1, 12), min_size=1))
def test_no_sequence_ever_holds_more_than_its_peak(window: int | None, block_size: int, chunks: list[int]) -> None:
    item = group(0, window=window, block_size=block_size)
    cache = KVCache([item], [1000], max_chunk=12)
    peak = item.peak_blocks(sum(chunks), 12)
    tokens = list(range(sum(chunks)))
    seq = cache.new_sequence("job")

    assert cache.admit(seq, tokens, cache.find(tokens), chunks[0])
    computed = 0
    for chunk in chunks:
        assert cache.extend(seq, computed, computed + chunk)
        assert seq.tables[0].num_held == cache.managers[0].pool.num_used <= peak
        computed += chunk
        cache.commit(seq, tokens, computed)


def test_a_window_smaller_than_a_block_still_needs_two_blocks() -> None:
    assert group(0, window=2, block_size=16).peak_blocks(100, 1) == 2


def test_a_window_of_one_sees_nothing_before_the_current_token() -> None:
    assert group(0, window=1).first_needed(8) == 2


def test_block_bytes_count_keys_and_values_of_all_layers() -> None:
    assert group(0, block_size=4).block_bytes(itemsize=2) == 1 * 4 * (1 + 1) * 2
