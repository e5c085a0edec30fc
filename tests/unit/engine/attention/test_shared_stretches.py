"""Decodes that share blocks come to them together: what is found is a tree, and it changes nothing but the work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.attention.base import GroupSpans, LayerTraits
from engine.attention.cpu import NativeAttention
from engine.attention.reference import attend_reference
from engine.attention.tiles import PASS, Stretch, plan_walk, shared_stretches
from engine.cache.groups import LayerGroup
from engine.model.batch import pack
from engine.model.memory import KVMemory
from engine.request import SamplingParams
from engine.step import NULL_BLOCK, Chunk

HEADS, KV_HEADS, DIM = 6, 2, 16
Tree = list[tuple[int, int]]  # per sequence: (sequence that it parts from, or itself; blocks that they share)


class Forest:
    """Sequences that begin in the blocks of others, and a step in which each is decoded (or ends a prompt)."""

    def __init__(self, parts: Tree, lengths: list[int], size: int, window: int | None, prefill: frozenset[int]) -> None:
        self.group = LayerGroup(
            index=0,
            kind="full" if window is None else "sliding",
            layers=(0,),
            block_size=size,
            window=window,
            num_kv_heads=KV_HEADS,
            key_dim=DIM,
            value_dim=DIM,
        )
        self.generator = torch.Generator().manual_seed(5)
        self.tables, used = [], 1
        for (parent, shared), length in zip(parts, lengths, strict=True):
            shared = min(shared, (length - 1) // size, len(self.tables[parent]) - 1 if parent < len(self.tables) else 0)
            table = list(self.tables[parent][:shared]) if parent < len(self.tables) else []
            own = -(-length // size) - len(table)
            self.tables.append([*table, *range(used, used + own)])
            used += own
        self.memory = KVMemory([self.group], used, torch.float32, torch.device("cpu"))
        for tensor in (self.memory.keys[0], self.memory.values[0]):
            tensor.copy_(torch.randn(tensor.shape, generator=self.generator))
        self.chunks = [
            self._chunk(number, 2 if number in prefill and length > 2 else 1, length)
            for number, length in enumerate(lengths)
        ]
        (self.spans,) = pack(self.chunks, [self.group]).spans
        self.query = torch.randn((HEADS, self.spans.num_tokens, DIM), generator=self.generator)

    def _chunk(self, number: int, computed: int, length: int) -> Chunk:
        start, window = length - computed, self.group.window
        hidden = 0 if window is None else max(0, start - window + 1) // self.group.block_size
        return Chunk(
            sequence_id=number,
            token_ids=[0] * length,
            start=start,
            length=computed,
            tables=([NULL_BLOCK] * hidden + self.tables[number][hidden:],),
            sample_indices=(0,),
            sampling=SamplingParams(),
            prompt_len=length,
        )

    def attend(self, backend: NativeAttention, traits: LayerTraits) -> torch.Tensor:
        return backend.plan(self.spans).attend(self.query, self.memory.keys[0], self.memory.values[0], traits)

    def expected(self, traits: LayerTraits) -> torch.Tensor:
        parts, size = [], self.group.block_size
        for number, chunk in enumerate(self.chunks):
            end = chunk.start + chunk.length
            slots = [self.tables[number][at // size] * size + at % size for at in range(end)]
            keys, values = self.memory.keys[0][:, slots], self.memory.values[0][:, slots]
            column = int(self.spans.offsets[number])
            query = self.query[:, column : column + chunk.length]
            parts.append(
                attend_reference(query, keys, values, start=chunk.start, window=self.group.window, traits=traits)
            )
        return torch.cat(parts)


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    count = draw(st.integers(2, 8))
    size = draw(st.sampled_from([4, 16, 32, 48]))
    parts = [(draw(st.integers(0, number)), draw(st.integers(0, 400 // size))) for number in range(count)]
    lengths = [draw(st.integers(1, 420)) for _ in range(count)]
    window = draw(st.sampled_from([None, 30, 100, 200]))
    return Forest(parts, lengths, size, window, draw(st.frozensets(st.integers(0, count - 1), max_size=2)))


def alike(spans: GroupSpans, first: int, second: int) -> int:
    """Keys, in whole passes, that two decodes have in the same blocks, as far as both tables tell."""
    size = spans.block_size
    block = max(int(spans.first_blocks[first]), int(spans.first_blocks[second]))
    least = min(int(spans.starts[first]), int(spans.starts[second]))
    while block <= least // size and (
        spans.tables[first][block - spans.first_blocks[first]]
        == spans.tables[second][block - spans.first_blocks[second]]
    ):
        block += 1
    unit = int(np.lcm(PASS, size))
    return min(block * size, least) // unit * unit


def hidden(spans: GroupSpans, first: int, second: int) -> int:
    """Up to here one of two decodes has nothing in its table."""
    return max(int(spans.first_blocks[first]), int(spans.first_blocks[second])) * spans.block_size


@given(forests())
@settings(max_examples=60, deadline=None)
def test_two_decodes_are_together_as_long_as_their_blocks_are_the_same(forest: Forest) -> None:
    spans = forest.spans

    together: dict[tuple[int, int], int] = {}
    reached: dict[int, tuple[int, int]] = {}
    for stretch in sorted(shared_stretches(spans), key=lambda stretch: stretch.stage):
        for member in stretch.members.tolist():
            stage, end = reached.get(member, (-1, 0))
            assert stretch.stage == stage + 1
            assert stretch.begin >= end, "a key is seen twice"
            assert stretch.begin == end or spans.window is not None or end == 0
            reached[member] = (stretch.stage, stretch.end)
            for other in stretch.members.tolist():
                together[member, other] = stretch.end

    for first in np.flatnonzero(spans.lengths == 1).tolist():
        for second in np.flatnonzero(spans.lengths == 1).tolist():
            if first != second:
                found = together.get((first, second), 0)
                # Behind a window not all that is alike shows in both tables.
                assert spans.window is not None or found == alike(spans, first, second)
                assert found <= max(alike(spans, first, second), hidden(spans, first, second))


@pytest.mark.parametrize("steady", [False, True])
@given(forests(), st.sampled_from(["plain", "softcap", "sinks"]))
@settings(max_examples=30, deadline=None)
def test_attention_over_a_forest_equals_the_reference(steady: bool, forest: Forest, kind: str) -> None:
    traits = {
        "plain": LayerTraits(scale=0.25),
        "softcap": LayerTraits(scale=1.0, softcap=2.0),
        "sinks": LayerTraits(scale=0.25, sinks=torch.linspace(-2, 2, HEADS)),
    }[kind]

    shared = forest.attend(NativeAttention(share=True, steady=steady), traits)

    torch.testing.assert_close(shared, forest.expected(traits), rtol=2e-5, atol=2e-6)
    if steady:
        assert torch.equal(shared, forest.attend(NativeAttention(share=False, steady=True), traits))


def test_a_tree_of_two_levels_is_walked_once_per_branch() -> None:
    # Two documents of 128 tokens behind the same 64, three sequences each.
    parts = [(0, 0), (0, 12), (0, 12), (0, 4), (3, 12), (3, 12)]
    forest = Forest(parts, [220, 210, 230, 240, 215, 221], 16, None, frozenset())

    stretches = list(shared_stretches(forest.spans))
    walk = plan_walk(forest.spans, height=10, share=True)

    found = {(s.stage, s.begin, s.end, tuple(sorted(s.members.tolist()))) for s in stretches}
    assert found == {(0, 0, 64, (0, 1, 2, 3, 4, 5)), (1, 64, 192, (0, 1, 2)), (1, 64, 192, (3, 4, 5))}
    assert np.diff(walk.stages).tolist() == [1, 2, 6]


def test_a_prompt_is_never_part_of_a_shared_stretch() -> None:
    forest = Forest([(0, 0), (0, 12), (0, 12)], [220, 210, 230], 16, None, frozenset({1}))

    stretches: list[Stretch] = list(shared_stretches(forest.spans))

    assert [s.members.tolist() for s in stretches] in ([[0, 2]], [[2, 0]])
