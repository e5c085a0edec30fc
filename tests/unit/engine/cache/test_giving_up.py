"""Which checkpoint goes when room is short: by what is known of its users, then by its last use."""

from __future__ import annotations

import pytest

from engine.cache.manager import KVCache
from engine.cache.tables import Rank, SequenceBlocks
from engine.request import Junction
from tests.unit.engine.contents import ready, tokens_of
from tests.unit.engine.harness import LINEAR


def run(cache: KVCache, tokens: list[int], *junctions: Junction) -> SequenceBlocks:
    """Admit the tokens and run them, with a stop at each place that is kept; then give everything back."""
    seq = cache.new_sequence("job")
    seq.follow("plan", 0, junctions, cache.grid)
    hit = cache.find(tokens, seq)
    assert cache.admit(seq, tokens, hit, len(tokens))
    while (stop := cache.next_stop(seq)) is not None:
        cache.commit(seq, tokens, stop)
    cache.commit(seq, tokens, len(tokens))
    cache.release(seq)
    cache.check_integrity()
    return seq


@pytest.fixture
def cache() -> KVCache:
    """A junction of a plan at six tokens of 7, then places kept on suspicion at eight tokens of 1, 2 and 3."""
    cache = KVCache(LINEAR, [200, 20], max_chunk=64)
    run(cache, [*[7] * 6, 1], Junction(6, 1))
    for token in (1, 2, 3):
        for tail in (51, 52):
            run(cache, [*[token] * 8, tail])
    return cache


def kept(cache: KVCache) -> list[int]:
    """The first tokens of the places that hold something."""
    return sorted(tokens_of(checkpoint)[0] for checkpoint in ready(cache))


def test_places_kept_on_suspicion_go_before_those_of_a_plan(cache: KVCache) -> None:
    assert kept(cache) == [1, 2, 3, 7]

    order = [kept(cache) for _ in range(4) if cache.reclaim(Rank.OWN)]

    assert order == [[2, 3, 7], [3, 7], [7], []]
    assert not cache.reclaim(Rank.OWN)


def test_a_place_of_a_plan_stays_when_only_suspicions_may_go(cache: KVCache) -> None:
    while cache.reclaim(Rank.LOOSE):
        cache.check_integrity()

    assert kept(cache) == [7]
    assert cache.reclaim(Rank.PLANNED)


def test_a_place_that_was_just_used_goes_last_of_its_kind(cache: KVCache) -> None:
    run(cache, [*[1] * 8, 53])

    order = [kept(cache) for _ in range(3) if cache.reclaim(Rank.LOOSE)]

    assert order == [[1, 3, 7], [1, 7], [7]]


def test_the_place_that_a_prompt_would_start_from_is_spared_while_others_can_go(cache: KVCache) -> None:
    hit = cache.find([*[1] * 8, 53])
    assert hit.length == 8

    assert cache.make_way(hit, [cache.new_sequence("job")])

    assert kept(cache) == [1, 3, 7]
