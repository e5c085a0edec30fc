"""Sliding-window attention: only the last window of tokens is visible, so only its blocks must be there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.cache.blocks import BlockManager
from engine.cache.prefix import PrefixNode
from engine.step import NULL_BLOCK


class SlidingManager(BlockManager):
    """Blocks are ordinary immutable blocks with holes behind the window, not a ring: a ring forgets the prefix.

    Valid prefixes are not closed downwards. A prefix of L tokens is valid if the blocks
    first_needed(L) .. (L - 1) // block_size are cached.
    """

    needs_ancestors = False

    def longest_valid(self, path: Sequence[PrefixNode], limit: int) -> int:
        """Right to left: a contiguous run that covers the window, or that reaches block 0."""
        size = self.group.block_size
        end = min(limit // size, len(path) // self.units_per_block)
        position = end
        while position > self.group.first_needed(end * size):
            position -= 1
            if self.cached(path, position) == NULL_BLOCK:
                end = position
        return end * size

    def give_up_order(self, blocks: Sequence[int]) -> Iterable[int]:
        """Tail last: the last window is the only part from which anything can be resumed."""
        return blocks
