from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.pool import BlockPool
from engine.cache.prefix import PrefixNode
from engine.errors import ConfigError


def node() -> PrefixNode:
    return PrefixNode(None, (), 1)


def cached(pool: BlockPool, *, used: bool = False) -> int:
    """A free block with content."""
    block = pool.pop()
    pool.unregister(block)
    pool.register(block, node())
    pool.used[block] = used
    pool.drop(block)
    return block


def test_a_new_pool_gives_out_every_block_but_null() -> None:
    pool = BlockPool(5)

    blocks = {pool.pop() for _ in range(pool.capacity)}

    assert blocks == {1, 2, 3, 4}
    assert pool.num_free == 0
    pool.check_integrity()


def test_a_pool_without_a_usable_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="block 0 is reserved"):
        BlockPool(1)


def test_blocks_without_content_go_before_cached_ones() -> None:
    pool = BlockPool(4)
    keep = cached(pool)

    assert keep not in {pool.pop(), pool.pop()}
    assert pool.pop() == keep


def test_cached_blocks_are_given_up_in_the_order_in_which_they_became_free() -> None:
    pool = BlockPool(4)
    held = [pool.pop() for _ in range(3)]
    for block in held:
        pool.register(block, node())
    for block in (held[1], held[2], held[0]):
        pool.drop(block)

    assert [pool.pop() for _ in range(3)] == [held[1], held[2], held[0]]


def test_content_that_was_reused_is_given_up_last() -> None:
    pool = BlockPool(11)
    proven = cached(pool, used=True)
    others = [pool.pop() for _ in range(9)]
    for block in others:
        pool.register(block, node())
        pool.drop(block)

    order = [pool.pop() for _ in range(10)]

    assert order[-1] == proven


def freed_in_turn(pool: BlockPool, count: int) -> list[int]:
    """Reused content, one block after the other."""
    blocks = [pool.pop() for _ in range(count)]
    for block in blocks:
        pool.register(block, node())
        pool.used[block] = 1
        pool.drop(block)
    return blocks


def test_reused_content_finds_no_hot_place_while_those_in_it_are_fresh() -> None:
    pool = BlockPool(5, hot_share=0.4)

    first, second, third, fourth = freed_in_turn(pool, 4)

    assert [pool.pop() for _ in range(4)] == [third, fourth, first, second]


def test_content_that_was_not_reused_for_long_gives_up_its_hot_place() -> None:
    pool = BlockPool(5, hot_share=0.2)
    stale, *_ = freed_in_turn(pool, 1)
    for _ in range(100):
        pool.drop(pool.pop())
    newcomer, *_ = freed_in_turn(pool, 1)
    pool.check_integrity()

    order = [pool.pop() for _ in range(4)]

    assert order[2:] == [stale, newcomer]


def test_vacated_blocks_are_given_out_first() -> None:
    pool = BlockPool(4)
    first, second, third = freed_in_turn(pool, 3)

    pool.vacate(second)
    pool.check_integrity()

    assert [pool.pop() for _ in range(3)] == [second, first, third]


def test_a_hit_takes_a_free_block_out_of_its_list() -> None:
    pool = BlockPool(4)
    block = cached(pool)

    pool.hold(block)
    pool.hold(block)

    assert pool.ref[block] == 2
    assert pool.num_used == 1
    assert block not in {pool.pop(), pool.pop()}
    pool.check_integrity()


def test_freeing_a_block_twice_is_caught() -> None:
    pool = BlockPool(3)
    block = pool.pop()
    pool.drop(block)

    with pytest.raises(AssertionError, match="freed twice"):
        pool.drop(block)


def test_null_is_never_referenced() -> None:
    with pytest.raises(AssertionError, match="NULL"):
        BlockPool(3).hold(0)


MOVES = st.sampled_from(["pop", "hold", "drop", "register", "use", "vacate"])


@settings(deadline=None)
@given(st.lists(st.tuples(MOVES, st.integers(0, 50)), max_size=80))
def test_no_order_of_moves_loses_or_doubles_a_block(moves: list[tuple[str, int]]) -> None:
    pool = BlockPool(7, hot_share=0.3)

    for move, choice in moves:
        held = [block for block in range(1, 7) if pool.ref[block]]
        if move == "pop" and pool.num_free:
            pool.unregister(pool.pop())
        elif move == "hold":
            block = 1 + choice % 6
            if pool.ref[block] or pool.node[block]:
                pool.hold(block)
        elif move == "vacate":
            block = 1 + choice % 6
            if not pool.ref[block]:
                pool.vacate(block)
        elif held:
            block = held[choice % len(held)]
            if move == "drop":
                pool.drop(block)
            elif move == "register" and pool.ref[block] == 1 and pool.node[block] is None:
                pool.register(block, node())
            elif move == "use":
                pool.used[block] = pool.node[block] is not None
        pool.check_integrity()
