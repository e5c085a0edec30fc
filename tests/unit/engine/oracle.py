"""How much of a prompt is in the cache, by definition and by trying every length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.cache.manager import KVCache
from engine.cache.prefix import PrefixNode
from engine.cache.tables import SequenceBlocks
from engine.step import NULL_BLOCK

Prefix = tuple[int, ...]


def _nodes(cache: KVCache) -> Iterator[tuple[Prefix, PrefixNode]]:
    stack: list[tuple[Prefix, PrefixNode]] = [((), cache._tree.root)]
    while stack:
        prefix, node = stack.pop()
        yield prefix, node
        stack.extend((prefix + tokens, child) for tokens, child in node.children.items())


def longest_hit(cache: KVCache, tokens: Sequence[int], seq: SequenceBlocks) -> int:
    """The largest length, short of the last token, from which every group can go on."""
    known = dict(_nodes(cache))
    at_checkpoints = {
        prefix + tail
        for prefix, node in known.items()
        for tail, checkpoint in (node.checkpoints or {}).items()
        if checkpoint.is_ready
    }

    def has_blocks(length: int) -> bool:
        """Of all groups, every whole block before `length` that the token there or a later one can see."""
        for index, manager in enumerate(cache.managers):
            size, window = manager.group.block_size, manager.group.window
            if not size:
                continue
            low = 0 if window is None else max(0, length - window + 1)
            for position in range(low // size, length // size):
                node = known.get(tuple(tokens[: (position + 1) * size]))
                if node is None or node.blocks[index] == NULL_BLOCK:
                    return False
        return True

    def can_resume(length: int) -> bool:
        kept = seq.kept
        if kept is not None and kept.is_ready and kept.length == length and (kept.is_whole or has_blocks(length)):
            return True
        if not cache.shares_prefixes:
            return False
        if tuple(tokens[:length]) in at_checkpoints:
            return True
        sizes = [manager.group.block_size for manager in cache.managers]
        return all(size and length % size == 0 for size in sizes) and has_blocks(length)

    return next((length for length in range(len(tokens) - 1, 0, -1) if can_resume(length)), 0)
