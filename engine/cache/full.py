"""Full attention: every earlier token is visible, so every block from 0 on must be there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.cache.blocks import BlockManager
from engine.cache.prefix import PrefixNode
from engine.step import NULL_BLOCK


class FullManager(BlockManager):
    """Valid prefixes are closed downwards: left to right, up to the first miss."""

    needs_ancestors = True

    def longest_valid(self, path: Sequence[PrefixNode], limit: int) -> int:
        size = self.group.block_size
        num_blocks = 0
        while (num_blocks + 1) * size <= limit and self.cached(path, num_blocks) != NULL_BLOCK:
            num_blocks += 1
        return num_blocks * size

    def give_up_order(self, blocks: Sequence[int]) -> Iterable[int]:
        """Leaf first: a block is worth nothing without the ones before it."""
        return reversed(blocks)

    def check_integrity(self) -> None:
        super().check_integrity()
        for node in self._tree.nodes():
            self._check_reachable(node)

    def _check_reachable(self, node: PrefixNode) -> None:
        if node.blocks[self.group.index] == NULL_BLOCK:
            return
        before: PrefixNode | None = node
        for _ in range(self.units_per_block):
            before = before.parent if before is not None else None
        assert before is not None, "a cached block has lost its ancestors"
        assert before is self._tree.root or before.blocks[self.group.index] != NULL_BLOCK, (
            "a block has outlived the one before it; nobody can reach it any more"
        )
