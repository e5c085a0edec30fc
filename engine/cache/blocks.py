"""What the groups that hold blocks have in common. The kinds differ in two rules: full.py and sliding.py."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence

from engine.cache.base import GroupManager, GroupTable
from engine.cache.groups import LayerGroup
from engine.cache.pool import BlockPool
from engine.cache.prefix import PrefixNode, PrefixTree
from engine.cache.usage import GroupUse
from engine.step import NULL_BLOCK


class BlockManager(GroupManager):
    """The owner of one group's pool. A node of the prefix tree spans `unit` tokens, a block `units_per_block` nodes."""

    pool: BlockPool

    def __init__(self, group: LayerGroup, pool: BlockPool, tree: PrefixTree, max_chunk: int) -> None:
        assert group.block_size % tree.unit == 0, "a block must be a whole number of units"
        self.group = group
        self.pool = pool
        self.use = GroupUse(pool.num_blocks)
        self.units_per_block = group.block_size // tree.unit
        self._tree = tree
        self._max_chunk = max_chunk

    @abstractmethod
    def give_up_order(self, blocks: Sequence[int]) -> Iterable[int]:
        """The blocks of a finished sequence, the one to be evicted first in front."""

    def peak_blocks(self, num_tokens: int, num_missing: int | None = None) -> int:
        longest = self._max_chunk if num_missing is None else min(self._max_chunk, max(1, num_missing))
        return self.group.peak_blocks(num_tokens, longest)

    def cached(self, path: Sequence[PrefixNode], position: int) -> int:
        """The block that caches block position `position` of this path, or NULL."""
        last_unit = (position + 1) * self.units_per_block - 1
        return path[last_unit].blocks[self.group.index] if last_unit < len(path) else NULL_BLOCK

    def hit_blocks(self, path: Sequence[PrefixNode], length: int) -> list[int]:
        first = self.group.first_needed(length)
        end = length // self.group.block_size
        return [NULL_BLOCK] * min(first, end) + [self.cached(path, position) for position in range(first, end)]

    def num_whole(self, length: int) -> int:
        return length // self.group.block_size

    def own_at(self, length: int) -> int | None:
        whole, rest = divmod(length, self.group.block_size)
        return whole if rest else None

    def needed_blocks(self, table: GroupTable, length: int) -> list[int]:
        end = self.num_whole(length)
        first = min(self.group.first_needed(length), end)
        return [NULL_BLOCK] * first + table.blocks[first:end]

    def take_hit(self, table: GroupTable, blocks: list[int], job: str) -> None:
        assert not table.blocks, "a running sequence takes no new hits"
        for block in blocks:
            if block == NULL_BLOCK:
                table.first += 1
                continue
            self._hold(block, job)
            self.pool.used[block] = 1
            table.shared += 1
        table.blocks.extend(blocks)

    def num_waking(self, blocks: Sequence[int]) -> int:
        return sum(1 for block in blocks if block != NULL_BLOCK and self.pool.ref[block] == 0)

    def num_references(self, block: int) -> int:
        return self.pool.ref[block]

    def num_alone(self, blocks: Sequence[int]) -> int:
        return sum(1 for block in blocks if self.pool.ref[block] == 1)

    def num_missing(self, held: Sequence[int], end: int) -> int:
        return max(0, -(-end // self.group.block_size) - len(held))

    def room(self, table: GroupTable) -> int:
        return len(table.blocks) * self.group.block_size

    def allocate(self, table: GroupTable, count: int, job: str) -> list[PrefixNode]:
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
        block = node.blocks[self.group.index]
        if block != NULL_BLOCK and self.pool.ref[block] == 0:
            self._count_eviction(table, block)
            self.pool.vacate(block)
            node.blocks[self.group.index] = NULL_BLOCK

    def _count_eviction(self, table: GroupTable, block: int) -> None:
        table.evicted += 1
        table.evicted_unused += not self.pool.used[block]

    def pass_on(self, source: GroupTable, source_job: str, target: GroupTable, job: str) -> None:
        block = source.blocks.pop()
        self.use.add(block, job)
        self.use.remove(block, source_job)
        target.blocks.append(block)

    def drop_behind(self, table: GroupTable, computed: int, job: str) -> None:
        """Lowest position first."""
        end = min(self.group.first_needed(computed), len(table.blocks))
        for position in range(table.first, end):
            self._drop(table.blocks[position], job)
            table.blocks[position] = NULL_BLOCK
        table.first = max(table.first, end)

    def register(self, table: GroupTable, unit: int, node: PrefixNode, job: str) -> None:
        """If an equal block is cached already, use that one instead."""
        position, rest = divmod(unit + 1, self.units_per_block)
        if rest or table.blocks[position - 1] == NULL_BLOCK:
            return
        block = table.blocks[position - 1]
        known = node.blocks[self.group.index]
        if known == NULL_BLOCK:
            self.pool.register(block, node)
            node.blocks[self.group.index] = block
        elif known != block:
            self._hold(known, job)
            self.pool.used[known] = 1
            table.blocks[position - 1] = known
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
