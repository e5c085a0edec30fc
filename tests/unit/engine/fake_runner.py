"""A runner without a model that notices every mistake in the tables.

It keeps "KV" like a real one: each position of each group's block stores the hash of all tokens up to there. A token is
sampled from that hash after reading the whole visible context back through the tables, so a wrong block, a stale one,
or one written too early changes the tokens, or fails on the spot. A state slot stores the hash of all tokens that ran
through it, so a slot that is shared, stale or not started anew fails as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from engine.cache.groups import LayerGroup
from engine.cache.linear import SlotPool
from engine.cache.pool import BlockPool
from engine.step import NULL_BLOCK, BlockCopy, Chunk, Sampled, Step

VOCAB = 50


def digest(before: int, token: int) -> int:
    data = before.to_bytes(8, "little") + token.to_bytes(8, "little", signed=True)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def next_token(prefix_digest: int, sample_index: int) -> int:
    return digest(prefix_digest, sample_index) % VOCAB


def reference(
    prompt: Sequence[int], max_tokens: int, stop_ids: frozenset[int] = frozenset(), sample_index: int = 0
) -> tuple[int, ...]:
    """What must come out, computed without any cache."""
    state, generated = 0, list[int]()
    for token in prompt:
        state = digest(state, token)
    while len(generated) < max_tokens:
        token = next_token(state, sample_index)
        if token in stop_ids:
            break
        generated.append(token)
        state = digest(state, token)
    return tuple(generated)


class FakeRunner:
    """`pools`, when given, lets it check that no shared or registered block is ever written."""

    def __init__(self, groups: Sequence[LayerGroup], pools: Sequence[BlockPool | SlotPool] = ()) -> None:
        self.groups = groups
        self.pools = pools
        self.kv: list[dict[tuple[int, int], int]] = [{} for _ in groups]
        self.slots: list[dict[int, int]] = [{} for _ in groups]
        self._states: dict[int, list[int]] = {}  # per sequence: the digest of its first i tokens, at i
        self.num_steps = 0
        self.forgotten: list[int] = []
        self.bad_sequences: set[int] = set()
        self.fails_at_step: int | None = None
        self.largest_step = 0

    def run(self, step: Step) -> list[Sampled]:
        self.num_steps += 1
        self.largest_step = max(self.largest_step, step.num_tokens)
        if self.num_steps == self.fails_at_step:
            raise RuntimeError("CUDA error: the device is gone")
        for copy in step.copies:
            self._copy(copy)
        for group in self.groups:
            if not group.has_blocks:
                slots = [slot for chunk in step.chunks for slot in chunk.tables[group.index]]
                assert len(slots) == len(set(slots)) == len(step.chunks), "two sequences have one state slot"
        ends = [self._run_chunk(chunk) for chunk in step.chunks]
        return [
            Sampled(
                sequence_id=chunk.sequence_id,
                token_id=next_token(end, index),
                logprob=-0.5,
                error="logits are not finite" if chunk.sequence_id in self.bad_sequences else None,
            )
            for chunk, end in zip(step.chunks, ends, strict=True)
            for index in chunk.sample_indices
        ]

    def _copy(self, copy: BlockCopy) -> None:
        """A target without an owner was given back after the copy was asked for: it is written in vain."""
        assert NULL_BLOCK not in (copy.source, copy.target), "a copy from or to NULL"
        group = self.groups[copy.group]
        if not group.has_blocks:
            self.slots[copy.group][copy.target] = self.slots[copy.group].get(copy.source, -1)
            return
        kv = self.kv[copy.group]
        for offset in range(group.block_size):
            kv[copy.target, offset] = kv.get((copy.source, offset), -1)
        if self.pools:
            pool = self.pools[copy.group]
            assert isinstance(pool, BlockPool)
            assert pool.node[copy.target] is None, "a copy goes to a registered block"
            assert pool.ref[copy.target] <= 1, "a copy goes to a shared block"

    def forget(self, sequence_id: int) -> None:
        self.forgotten.append(sequence_id)

    def _run_chunk(self, chunk: Chunk) -> int:
        assert chunk.length > 0, "an empty chunk was scheduled"
        assert bool(chunk.sample_indices) == (chunk.start + chunk.length == len(chunk.token_ids))
        end = chunk.start + chunk.length
        states = self._states.setdefault(chunk.sequence_id, [0])
        for position in range(len(states) - 1, end):
            states.append(digest(states[position], chunk.token_ids[position]))
        for group, table, kv in zip(self.groups, chunk.tables, self.kv, strict=True):
            if not group.has_blocks:
                self._carry_state(group, table, chunk, states)
                continue
            first = 0 if group.window is None else max(0, chunk.start - group.window + 1)
            for position in range(first, end):
                index, offset = divmod(position, group.block_size)
                block = table[index]
                if position >= chunk.start:
                    self._check_writable(group, block)
                    kv[block, offset] = states[position + 1]
                else:
                    assert block != NULL_BLOCK, f"position {position} of group {group.index} is visible but was dropped"
                    found = kv.get((block, offset))
                    assert found == states[position + 1], f"position {position} of group {group.index} holds another"
        return states[end]

    def _carry_state(self, group: LayerGroup, table: Sequence[int], chunk: Chunk, states: Sequence[int]) -> None:
        (slot,) = table
        assert slot != NULL_BLOCK, "a state goes to the NULL slot"
        if self.pools:
            assert self.pools[group.index].taken[slot], "a state goes to a slot that is free"
        before = self.slots[group.index].get(slot) if chunk.start else 0
        assert before == states[chunk.start], f"slot {slot} does not hold the state after {chunk.start} tokens"
        self.slots[group.index][slot] = states[chunk.start + chunk.length]

    def _check_writable(self, group: LayerGroup, block: int) -> None:
        assert block != NULL_BLOCK, "a write goes to the NULL block"
        if self.pools:
            pool = self.pools[group.index]
            assert pool.ref[block] == 1, "a write goes to a shared block"
            assert pool.node[block] is None, "a write goes to a registered block"
