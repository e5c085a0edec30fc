"""The managers of all layer groups under one prefix tree, and what takes all of them at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import gcd, inf

from engine.cache.base import GroupManager, GroupTable
from engine.cache.full import FullManager
from engine.cache.groups import LayerGroup
from engine.cache.linear import LinearManager, SlotPool
from engine.cache.pool import BlockPool
from engine.cache.prefix import PrefixNode, PrefixTree
from engine.cache.sliding import SlidingManager
from engine.grid import Grid
from engine.step import NULL_BLOCK

_ORDER = ("full", "sliding")  # the fixed point ends soonest if the simplest rule cuts first
_UNIT_WITHOUT_BLOCKS = 16


def _manager(group: LayerGroup, size: int, tree: PrefixTree, max_chunk: int) -> GroupManager:
    """`size` counts blocks or state slots, id 0 included."""
    if group.kind == "linear":
        return LinearManager(group, SlotPool(size))
    kind = FullManager if group.kind == "full" else SlidingManager
    return kind(group, BlockPool(size), tree, max_chunk)


class Groups:
    """Every group's manager and the tree that they enter their blocks in."""

    def __init__(self, groups: Sequence[LayerGroup], sizes: Sequence[int], max_chunk: int, grid: Grid) -> None:
        self._grid = grid
        block_sizes = [group.block_size for group in groups if group.has_blocks]
        self.tree = PrefixTree(gcd(*block_sizes) or _UNIT_WITHOUT_BLOCKS, len(groups))
        self.managers: tuple[GroupManager, ...] = tuple(
            _manager(group, size, self.tree, max_chunk) for group, size in zip(groups, sizes, strict=True)
        )
        with_blocks = [manager for manager in self.managers if manager.group.has_blocks]
        self.with_blocks = tuple(sorted(with_blocks, key=lambda manager: _ORDER.index(manager.group.kind)))
        self.has_states = len(with_blocks) < len(self.managers)
        self.num_slots = min((each.pool.capacity for each in self.managers if not each.group.has_blocks), default=inf)

    def common(self, path: Sequence[PrefixNode], limit: int) -> int:
        """The longest prefix of at most `limit` tokens on the grid from which every group with blocks can go on.

        Fixed point: the answer is valid in each group, so none ever cuts below it.
        """
        before = -1
        while limit != before:
            before = limit = self._grid.floor(limit)
            for manager in self.with_blocks:
                limit = manager.longest_valid(path, limit)
        return limit if self.with_blocks else 0

    def can_go_on(self, path: Sequence[PrefixNode], length: int) -> bool:
        """Whether the whole blocks before `length` that a later token can see are cached in every group."""
        return all(
            NULL_BLOCK not in manager.hit_blocks(path, length)[manager.group.first_needed(length) :]
            for manager in self.with_blocks
        )

    def allocate(self, tables: Sequence[GroupTable], counts: Sequence[int], job: str) -> None:
        """Fresh blocks for every group. The caller has checked the room."""
        for manager, table, count in zip(self.managers, tables, counts, strict=True):
            for node in manager.allocate(table, count, job):
                if manager.needs_ancestors:
                    self._forget_beyond(node, tables)
                self.tree.prune(node)

    def _forget_beyond(self, node: PrefixNode, tables: Sequence[GroupTable]) -> None:
        """A full group has lost this prefix: no longer one can be resumed, so the other groups' blocks are dead too.

        What is in use stays; it holds the prefix in every group, so nothing of that kind is found here except by a
        sequence that computes the prefix anew.
        """
        stack, leaves = [node], []
        while stack:
            dead = stack.pop()
            for manager, table in zip(self.managers, tables, strict=True):
                manager.vacate(table, dead)
            stack.extend(dead.children.values())
            if not dead.children:
                leaves.append(dead)
        for leaf in leaves:
            self.tree.prune(leaf)

    def release(self, tables: Sequence[GroupTable], job: str) -> None:
        for manager, table in zip(self.managers, tables, strict=True):
            manager.release(table, job)

    def most_is_kept(self, running: Sequence[Sequence[GroupTable]]) -> bool:
        """Whether more than half of some pool is neither free nor with these sequences.

        What they share counts for each of them, so it may be more than this tells, never less.
        """
        return any(
            manager.pool.num_free + sum(tables[index].num_held for tables in running) < manager.pool.capacity / 2
            for index, manager in enumerate(self.managers)
        )

    def check_integrity(self) -> None:
        self.tree.check_integrity()
        for manager in self.managers:
            manager.check_integrity()

    def check_references(self, all_tables: Sequence[Sequence[GroupTable]]) -> None:
        """Every block is referred to exactly as often as these tables name it."""
        for index, manager in enumerate(self.managers):
            named: Counter[int] = Counter()
            for tables in all_tables:
                named.update(tables[index].blocks[tables[index].first :])
            references = {block: manager.num_references(block) for block in named}
            assert references == named, f"group {index}: a block's references are miscounted"
            assert len(named) == manager.pool.capacity - manager.pool.num_free, f"group {index}: a block is lost"
