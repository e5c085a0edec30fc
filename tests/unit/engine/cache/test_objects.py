"""What the cache costs in Python objects, and which blocks others may have."""

from __future__ import annotations

import gc
from collections import Counter

import pytest

from engine.cache.groups import LayerGroup
from engine.cache.manager import KVCache
from tests.unit.engine.harness import FULL, HYBRID, LINEAR, STATES, Harness, request

LAYOUTS = {"full": FULL, "hybrid": HYBRID, "full and states": LINEAR, "states": (STATES,)}
CONTAINERS = (list, tuple, dict, set, frozenset)


def objects(root: object) -> Counter[type]:
    """All objects that hang on this one, by type, classes and functions left out."""
    found, stack = {id(root): root}, [root]
    while stack:
        each = stack.pop()
        if not isinstance(each, CONTAINERS) and not type(each).__module__.startswith("engine."):
            continue
        for other in gc.get_referents(each):
            if id(other) not in found and not isinstance(other, type) and not callable(other):
                found[id(other)] = other
                stack.append(other)
    return Counter(type(each) for each in found.values())


def cache_of(groups: tuple[LayerGroup, ...], size: int, *, allow_block_sharing: bool = True) -> KVCache:
    return KVCache(groups, [size] * len(groups), max_chunk=32, allow_block_sharing=allow_block_sharing)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_is_a_number(layout: str) -> None:
    small, large = (objects(cache_of(LAYOUTS[layout], size)) for size in (1_000, 100_000))

    more = large - small

    assert more[int] >= 99_000
    assert set(more) == {int}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_block_in_use_that_nobody_shares_is_a_number_too(layout: str) -> None:
    counts = []
    for num_tokens in (40, 4_000):
        cache = cache_of(LAYOUTS[layout], 2_000, allow_block_sharing=False)
        seq = cache.new_sequence("job")
        tokens = list(range(num_tokens))
        assert cache.admit(seq, tokens, cache.find(tokens), num_tokens)
        cache.commit(seq, tokens, num_tokens)
        counts.append(objects((cache, seq)))

    more = counts[1] - counts[0]

    assert set(more) <= {int}


@pytest.mark.parametrize("use_prefix_sharing", [True, False], ids=["prefix sharing", "block sharing"])
def test_only_what_a_step_has_computed_can_be_shared(use_prefix_sharing: bool) -> None:
    harness = Harness(FULL, max_batch_tokens=10, use_prefix_sharing=use_prefix_sharing)
    (pool,) = [manager.pool for manager in harness.cache.managers]
    harness.scheduler.submit(request("a", range(38), 1))
    registered = []

    while (step := harness.scheduler.schedule()) is not None:
        scheduled = sum(node is not None for node in pool.node)
        harness.scheduler.update(step, harness.runner.run(step), 1.0)
        registered.append((scheduled, sum(node is not None for node in pool.node)))

    assert registered == [(0, 2), (2, 5), (5, 7), (7, 9)], "10 tokens each, 4 a block, two at the end in none"


def test_a_block_behind_which_the_logits_were_not_finite_is_nobody_elses() -> None:
    harness = Harness(FULL, max_batch_tokens=64)
    harness.runner.bad_sequences = {0}

    done = harness.run(request("a", range(20), 4))

    assert done["a", 0].finish_reason == "error"
    assert harness.cache.find([*range(20), 1, 2]).length == 0
