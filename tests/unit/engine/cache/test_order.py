"""What is given up first, and that something is whenever it frees a block."""

from __future__ import annotations

from engine.cache.manager import KVCache
from engine.cache.tables import Rank
from tests.unit.engine.contents import num_free
from tests.unit.engine.harness import FULL


def test_checkpoints_of_equal_prompts_hold_the_same_blocks_and_go_together() -> None:
    cache = KVCache(FULL, [6], max_chunk=64)
    prompt = list(range(8))
    for _ in range(2):
        seq = cache.new_sequence("job")
        assert cache.admit(seq, prompt, cache.find(prompt), 8)
        cache.commit(seq, prompt, 8)
        assert cache.fork(seq, 8, num_siblings=1) is not None
        cache.release(seq)
    assert num_free(cache) == (3,)

    given_up = [cache.reclaim(Rank.OWN) for _ in range(3)]

    assert given_up == [True, True, False]
    assert num_free(cache) == (5,)


def test_what_a_sequence_uses_itself_is_not_given_up_for_it() -> None:
    cache = KVCache(FULL, [6], max_chunk=64)
    prompt = list(range(8))
    seq = cache.new_sequence("job")
    assert cache.admit(seq, prompt, cache.find(prompt), 8)
    cache.commit(seq, prompt, 8)
    assert all(cache.fork(seq, 8, num_siblings=1) for _ in range(2))

    assert not cache.reclaim(Rank.OWN)
