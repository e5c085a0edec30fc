"""What every kind of layer group does with its blocks. The kinds differ in two rules: full.py and sliding.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

from engine.cache.groups import LayerGroup
from engine.cache.pool import BlockPool
from engine.cache.prefix import PrefixNode, PrefixTree
from engine.cache.usage import GroupUse
from engine.request import GroupCounters
from engine.step import NULL_BLOCK


class GroupTable:
    """One sequence's blocks in one group, by absolute block position, and what it took to get them.

    |  0 .. first  |  first .. len(blocks)  |
    |     NULL     |          held          |
    """

    __slots__ = ("allocated", "blocks", "copied", "evicted", "evicted_unused", "first", "shared")

    def __init__(self) -> None:
        self.blocks: list[int] = []  # the runner keeps a reference: changed in place, never replaced
        self.first = 0
        self.allocated = 0
        self.shared = 0
        self.copied = 0
        self.evicted = 0
        self.evicted_unused = 0

    @property
    def num_held(self) -> int:
        return len(self.blocks) - self.first

    def counters(self) -> GroupCounters:
        return GroupCounters(
            allocated=self.allocated,
            shared=self.shared,
            copied=self.copied,
            evicted=self.evicted,
            evicted_unused=self.evicted_unused,
        )


class GroupManager(ABC):
    """The owner of one group's pool. A node of the prefix tree spans `unit` tokens, a block `units_per_block` nodes."""

    def __init__(self, group: LayerGroup, pool: BlockPool, tree: PrefixTree, max_chunk: int) -> None:
        assert group.block_size % tree.unit == 0, "a block must be a whole number of units"
        self.group = group
        self.pool = pool
        self.use = GroupUse(pool.num_blocks)
        self.units_per_block = group.block_size // tree.unit
        self._tree = tree
        self._max_chunk = max_chunk

    needs_ancestors: ClassVar[bool]
    """Whether a cached block is worthless once a block before it is gone."""

    @abstractmethod
    def longest_valid(self, path: Sequence[PrefixNode], limit: int) -> int:
        """The longest prefix of at most `limit` tokens from which this group could go on; 0 if none."""

    @abstractmethod
    def give_up_order(self, blocks: Sequence[int]) -> Iterable[int]:
        """The blocks of a finished sequence, the one to be evicted first in front."""

    def peak_blocks(self, num_tokens: int, num_missing: int | None = None) -> int:
        """The most blocks that a sequence of `num_tokens` ever holds: used for sizing and for admission alike.

        With `num_missing`, the tokens that are there but have not run, from now on: a sequence that only decodes any
        more needs less room for its chunks.
        """
        longest = self._max_chunk if num_missing is None else min(self._max_chunk, max(1, num_missing))
        return self.group.peak_blocks(num_tokens, longest)

    def cached(self, path: Sequence[PrefixNode], position: int) -> int:
        """The block that caches block position `position` of this path, or NULL."""
        last_unit = (position + 1) * self.units_per_block - 1
        return path[last_unit].blocks[self.group.index] if last_unit < len(path) else NULL_BLOCK

    def hit_blocks(self, path: Sequence[PrefixNode], length: int) -> list[int]:
        """The table after a hit of `length` tokens: NULL where no later token can see."""
        first = self.group.first_needed(length)
        end = length // self.group.block_size
        return [NULL_BLOCK] * min(first, end) + [self.cached(path, position) for position in range(first, end)]

    def take_hit(self, table: GroupTable, blocks: list[int], job: str) -> None:
        """Hold the blocks of a hit: nothing that is allocated later can evict them."""
        assert not table.blocks, "a running sequence takes no new hits"
        for block in blocks:
            if block == NULL_BLOCK:
                table.first += 1
                continue
            self._hold(block, job)
            self.pool.used[block] = 1
            table.shared += 1
        table.blocks.extend(blocks)

    def num_missing(self, table: GroupTable, end: int) -> int:
        """Blocks still to be allocated before positions below `end` can be written."""
        return max(0, -(-end // self.group.block_size) - len(table.blocks))

    def allocate(self, table: GroupTable, count: int, job: str) -> list[PrefixNode]:
        """Append fresh blocks; return the prefixes that were evicted for them. The caller has checked the room."""
        evicted: list[PrefixNode] = []
        for _ in range(count):
            block = self.pool.pop()
            node = self.pool.node[block]
            if node is not None:
                self._count_eviction(table, block)
                self.pool.unregister(block)
                node.blocks[self.group.index] = NULL_BLOCK
                evicted.append(node)
            self.use.add(block, job)
            table.blocks.append(block)
        table.allocated += count
        return evicted

    def vacate(self, table: GroupTable, node: PrefixNode) -> None:
        """Forget what is cached for this prefix, if nobody uses it. It counts as evicted for `table`."""
        block = node.blocks[self.group.index]
        if block != NULL_BLOCK and self.pool.ref[block] == 0:
            self._count_eviction(table, block)
            self.pool.vacate(block)
            node.blocks[self.group.index] = NULL_BLOCK

    def _count_eviction(self, table: GroupTable, block: int) -> None:
        table.evicted += 1
        table.evicted_unused += not self.pool.used[block]

    def drop_behind(self, table: GroupTable, computed: int, job: str) -> None:
        """Give back what no token from position `computed` on can see, lowest position first."""
        end = min(self.group.first_needed(computed), len(table.blocks))
        for position in range(table.first, end):
            self._drop(table.blocks[position], job)
            table.blocks[position] = NULL_BLOCK
        table.first = max(table.first, end)

    def register(self, table: GroupTable, position: int, node: PrefixNode, job: str) -> None:
        """Enter a block that has just been computed; if an equal one is cached already, use that one instead."""
        block = table.blocks[position]
        if block == NULL_BLOCK:
            return
        known = node.blocks[self.group.index]
        if known == NULL_BLOCK:
            self.pool.register(block, node)
            node.blocks[self.group.index] = block
        elif known != block:
            self._hold(known, job)
            self.pool.used[known] = 1
            table.blocks[position] = known
            table.shared += 1
            self._drop(block, job)

    def release(self, table: GroupTable, job: str) -> None:
        for block in self.give_up_order(table.blocks[table.first :]):
            self._drop(block, job)
        table.blocks.clear()
        table.first = 0

    def _hold(self, block: int, job: str) -> None:
        self.pool.hold(block)
        self.use.add(block, job)

    def _drop(self, block: int, job: str) -> None:
        self.use.remove(block, job)
        self.pool.drop(block)

    def check_integrity(self) -> None:
        self.pool.check_integrity()
        for node in self._tree.nodes():
            block = node.blocks[self.group.index]
            assert block == NULL_BLOCK or self.pool.node[block] is node, f"block {block} and its prefix disagree"
        registered = sum(1 for node in self.pool.node if node is not None)
        in_tree = sum(1 for node in self._tree.nodes() if node.blocks[self.group.index] != NULL_BLOCK)
        assert registered == in_tree, "a registered block has left the prefix tree"
        self.use.check_integrity(self.pool.ref)
