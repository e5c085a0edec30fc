"""The hit rules against a brute force that knows only the definitions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.groups import LayerGroup
from engine.cache.manager import KVCache
from engine.step import NULL_BLOCK
from tests.unit.engine.harness import group


class Cached:
    """A cache whose tree holds one path of `num_units` units, with blocks at will."""

    def __init__(self, groups: tuple[LayerGroup, ...], num_tokens: int) -> None:
        self.cache = KVCache(groups, [400] * len(groups), max_chunk=1 << 20)
        self.tokens = list(range(num_tokens))
        writer = self.cache.new_sequence("job")
        assert self.cache.admit(writer, self.tokens, self.cache.find(self.tokens), num_tokens)
        self.cache.commit(writer, self.tokens, num_tokens)
        self.cache.release(writer)
        self.path = self.cache.find([*self.tokens, -1]).path

    def evict(self, index: int, position: int) -> None:
        manager = self.cache.managers[index]
        block = manager.cached(self.path, position)
        if block != NULL_BLOCK:
            self.path[(position + 1) * manager.units_per_block - 1].blocks[index] = NULL_BLOCK
            manager.pool.node[block] = None

    def present(self, index: int, position: int) -> bool:
        return self.cache.managers[index].cached(self.path, position) != NULL_BLOCK

    def is_valid(self, length: int) -> bool:
        """By definition: every block that the token at `length` can see, and nothing half full."""
        for item in self.cache.managers:
            size, window = item.group.block_size, item.group.window
            if length % size:
                return False
            low = 0 if window is None else max(0, length - window + 1)
            visible = {position // size for position in range(low, length)}
            if not all(self.present(item.group.index, position) for position in visible):
                return False
        return True

    def brute_force(self, limit: int) -> int:
        return next(length for length in range(limit, -1, -1) if self.is_valid(length))


GROUPS = st.sampled_from(
    [
        (group(0),),
        (group(0, window=9),),
        (group(0), group(1, window=9)),
        (group(0), group(1, window=1), group(2, window=6)),
        (group(0, block_size=8), group(1, window=5, block_size=2)),
        (group(0, window=12), group(1, window=7, block_size=6)),
    ]
)


@settings(max_examples=80, deadline=None)
@given(GROUPS, st.integers(1, 60), st.sets(st.tuples(st.integers(0, 2), st.integers(0, 29)), max_size=12))
def test_the_hit_is_the_longest_prefix_that_every_group_can_resume(
    groups: tuple[LayerGroup, ...], num_tokens: int, evictions: set[tuple[int, int]]
) -> None:
    cached = Cached(groups, num_tokens)
    for index, position in evictions:
        if index < len(groups):
            cached.evict(index, position)

    for prompt_len in range(1, num_tokens + 2):
        prompt = [*cached.tokens, -1][:prompt_len]
        assert cached.cache.find(prompt).length == cached.brute_force(prompt_len - 1)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 8, 9, 11, 12, 13])
@pytest.mark.parametrize("length", [4, 8, 12, 16, 20])
def test_a_sliding_hit_takes_exactly_the_blocks_of_the_window(window: int, length: int) -> None:
    cached = Cached((group(0, window=window),), 40)

    hit = cached.cache.find([*cached.tokens[:length], -1])

    visible = {position // 4 for position in range(max(0, length - window + 1), length)}
    assert hit.length == length
    assert {index for index, block in enumerate(hit.blocks[0]) if block != NULL_BLOCK} == visible
    assert len(hit.blocks[0]) == length // 4


def test_a_missing_block_inside_the_window_moves_a_sliding_hit_before_it() -> None:
    cached = Cached((group(0, window=9),), 40)

    cached.evict(0, 5)

    assert cached.cache.find(cached.tokens[:33]).length == 32
    assert cached.cache.find(cached.tokens[:29]).length == 20


def test_a_missing_block_behind_the_window_does_not_matter_to_a_sliding_group() -> None:
    cached = Cached((group(0, window=9),), 40)

    cached.evict(0, 0)

    assert cached.cache.find(cached.tokens).length == 36


def test_a_prompt_that_is_cached_whole_still_runs_its_last_token() -> None:
    cached = Cached((group(0), group(1, window=9)), 16)

    assert cached.cache.find(cached.tokens).length == 12
    assert cached.cache.find([*cached.tokens, -1]).length == 16


def test_a_coarse_group_shortens_the_hit_to_its_own_grid_only() -> None:
    cached = Cached((group(0, block_size=8), group(1, window=5, block_size=2)), 40)

    assert cached.cache.find(cached.tokens[:31]).length == 24
    assert cached.cache.find([*cached.tokens[:32], -1]).length == 32


def test_a_prompt_shorter_than_a_block_inserts_nothing_and_hits_nothing() -> None:
    cached = Cached((group(0), group(1, window=9)), 3)

    assert cached.cache.find(cached.tokens).length == 0
    assert cached.cache.find([*cached.tokens, 3, 4, 5]).path == []
    cached.cache.check_integrity()


TWO_FULL = (group(0), group(1, block_size=6), LayerGroup.of_states(2, (5,)))


@settings(max_examples=40, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 1), st.integers(0, 9)), max_size=4))
def test_what_two_full_groups_share_is_not_overestimated(evictions: set[tuple[int, int]]) -> None:
    """A junction is suspected there, so it must be where both can go on, and no state makes it a hit."""
    cached = Cached(TWO_FULL, 40)
    for index, position in evictions:
        cached.evict(index, position)

    hit = cached.cache.find([*cached.tokens, -1])

    reach = [0, 0]
    for index, size in ((0, 4), (1, 6)):
        while reach[index] + size <= 40 and cached.present(index, reach[index] // size):
            reach[index] += size
    assert hit.shared == min(reach) // 12 * 12, "both have whole blocks at every twelfth token alone"
    assert hit.length == 0


def test_a_new_model_finds_nothing_of_the_old_one() -> None:
    """A cache serves one model, and the engine of another one has a cache of its own."""
    old = Cached((group(0), group(1, window=9)), 40)
    assert old.cache.find(old.tokens).length == 36

    new = KVCache((group(0), group(1, window=9)), [400, 400], max_chunk=64)

    assert new.find(old.tokens).length == 0
    assert new.find(old.tokens).path == []
