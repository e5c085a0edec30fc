from __future__ import annotations

from engine.cache.prefix import PrefixNode, PrefixTree


def grow(tree: PrefixTree, *units: tuple[int, ...]) -> list[PrefixNode]:
    """A path whose last node is pinned."""
    path = [tree.root]
    for unit in units:
        path.append(tree.child(path[-1], unit))
    path[-1].pins += 1
    return path[1:]


def test_a_walk_follows_exact_tokens_and_whole_units_only() -> None:
    tree = PrefixTree(unit=2, num_groups=1)
    first, second = grow(tree, (1, 2), (3, 4))

    assert tree.walk([1, 2, 3, 4, 5], 5) == [first, second]
    assert tree.walk([1, 2, 3, 4], 3) == [first]
    assert tree.walk([1, 2, 3, 9], 4) == [first]
    assert tree.walk([1], 1) == []


def test_tokens_that_hash_alike_are_told_apart() -> None:
    tree = PrefixTree(unit=2, num_groups=1)
    assert hash((-1, 5)) == hash((-2, 5)), "Python hashes -1 and -2 alike"
    (node,) = grow(tree, (-1, 5))

    assert tree.walk([-1, 5], 2) == [node]
    assert tree.walk([-2, 5], 2) == []


def test_the_same_unit_after_another_prefix_is_another_node() -> None:
    tree = PrefixTree(unit=1, num_groups=1)

    _, after_one = grow(tree, (1,), (5,))
    _, after_two = grow(tree, (2,), (5,))

    assert after_one is not after_two


def test_pruning_stops_at_the_first_node_that_something_needs() -> None:
    tree = PrefixTree(unit=1, num_groups=2)
    first, second, third = grow(tree, (1,), (2,), (3,))
    first.blocks[1] = 8
    third.pins -= 1

    tree.prune(third)

    assert tree.walk([1, 2, 3], 3) == [first]
    assert second.parent is None
    assert tree.num_nodes == 1
    tree.check_integrity()


def test_a_node_without_blocks_stays_as_long_as_a_descendant_has_one() -> None:
    tree = PrefixTree(unit=1, num_groups=1)
    first, second = grow(tree, (1,), (2,))
    second.blocks[0] = 4
    second.pins -= 1

    tree.prune(first)
    assert tree.walk([1, 2], 2) == [first, second]

    second.blocks[0] = 0
    tree.prune(second)
    assert tree.num_nodes == 0
