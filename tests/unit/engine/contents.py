"""What stands in the cache, said again from the definitions: for tests that hold the engine's own answers to it."""

from __future__ import annotations

from collections.abc import Sequence

from engine.cache.manager import KVCache
from engine.cache.prefix import PrefixNode
from engine.cache.tables import Checkpoint, SequenceBlocks
from engine.step import NULL_BLOCK
from tests.unit.engine.fake_runner import digest
from tests.unit.engine.harness import Harness


def states_of(tokens: Sequence[int]) -> list[int]:
    """The digest of the first i tokens, at i."""
    states = [0]
    for token in tokens:
        states.append(digest(states[-1], token))
    return states


def tokens_of(checkpoint: Checkpoint) -> tuple[int, ...]:
    """The tokens of the place where it stands in the tree."""
    parts, node = [checkpoint.tail], checkpoint.node
    while node is not None:
        parts.append(node.unit_tokens)
        node = node.parent
    return tuple(token for part in reversed(parts) for token in part)


def num_free(cache: KVCache) -> tuple[int, ...]:
    """Blocks or slots that nothing holds, per group."""
    return tuple(manager.pool.num_free for manager in cache.managers)


def ready(cache: KVCache) -> list[Checkpoint]:
    return list(cache._checkpoints._ready)


def check_checkpoints(harness: Harness) -> int:
    """Hold each that is ready to its tokens, as the copies that wait will leave it; returns how many were read."""
    runner = harness.runner
    kv, slots = [dict(each) for each in runner.kv], [dict(each) for each in runner.slots]
    for copy in harness.cache._checkpoints._copies:
        group = runner.groups[copy.group]
        if not group.has_blocks:
            slots[copy.group][copy.target] = slots[copy.group].get(copy.source, -1)
        for offset in range(group.block_size):
            kv[copy.group][copy.target, offset] = kv[copy.group].get((copy.source, offset), -1)
    owner = {seq.blocks.kept: seq for seq in harness.scheduler._sequences.values() if seq.blocks.kept is not None}
    for checkpoint in ready(harness.cache):
        if checkpoint.node is None:
            tokens = tuple(owner[checkpoint].tokens[: checkpoint.length])
        else:
            tokens = tokens_of(checkpoint)
        assert len(tokens) == checkpoint.length, "the position is not that of the tokens"
        states = states_of(tokens)
        for group, table in zip(runner.groups, checkpoint.tables, strict=True):
            if not group.has_blocks:
                (slot,) = table.blocks
                assert slots[group.index][slot] == states[-1], "the state is that of another position"
                continue
            whole = checkpoint.length // group.block_size
            low = 0 if group.window is None else max(0, checkpoint.length - group.window + 1)
            for position in range(low, checkpoint.length):
                place, offset = divmod(position, group.block_size)
                if place < whole and not checkpoint.is_whole:
                    continue  # what a preemption leaves relies on the blocks that are cached
                assert kv[group.index].get((table.blocks[place], offset)) == states[position + 1]
    return len(ready(harness.cache))


def longest_start(cache: KVCache, tokens: Sequence[int], seq: SequenceBlocks) -> int:
    """Brute force over all lengths that leave a token to run: the longest from which every group can go on."""
    places = {tokens_of(checkpoint) for checkpoint in ready(cache) if checkpoint.node is not None}
    nodes = _nodes(cache, tokens)
    for length in range(len(tokens) - 1, 0, -1):
        has_checkpoint = tuple(tokens[:length]) in places
        if has_checkpoint or _is_kept(cache, nodes, seq, length) or _has_blocks(cache, nodes, length):
            return length
    return 0


def _nodes(cache: KVCache, tokens: Sequence[int]) -> dict[int, PrefixNode]:
    """The known prefixes of these tokens, by their length."""
    node, unit, found = cache._tree.root, cache._tree.unit, {}
    for end in range(unit, len(tokens) + 1, unit):
        child = node.children.get(tuple(tokens[end - unit : end]))
        if child is None:
            break
        found[end] = node = child
    return found


def _has_blocks(cache: KVCache, nodes: dict[int, PrefixNode], length: int) -> bool:
    """Whole blocks alone: none of a group is begun, each that the next token can see is there, and no state is due."""
    groups = [manager.group for manager in cache.managers]
    return all(group.has_blocks and length % group.block_size == 0 for group in groups) and _sees(cache, nodes, length)


def _is_kept(cache: KVCache, nodes: dict[int, PrefixNode], seq: SequenceBlocks, length: int) -> bool:
    kept = seq.kept
    if kept is None or not kept.tables or kept.length != length:
        return False
    return kept.is_whole or _sees(cache, nodes, length)


def _sees(cache: KVCache, nodes: dict[int, PrefixNode], length: int) -> bool:
    """Whether all whole blocks are cached that the token at `length` can see."""
    for manager in cache.managers:
        group = manager.group
        if not group.has_blocks:
            continue
        low = 0 if group.window is None else max(0, length - group.window + 1)
        for place in range(low // group.block_size, length // group.block_size):
            node = nodes.get((place + 1) * group.block_size)
            if node is None or node.blocks[group.index] == NULL_BLOCK:
                return False
    return True
