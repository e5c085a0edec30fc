"""Steady, the C kernel gives a query the same bits however its sequence is cut and whoever comes with it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch

from engine.attention.base import LayerTraits
from engine.attention.cpu import NativeAttention
from engine.model.batch import pack
from engine.step import Chunk
from tests.unit.engine.attention.test_backends_equal_reference import TRAITS, Paged, Shape

LENGTH = 150
CUTS = [(0, 150), (0, 16, 32, 48, 150), (0, 1, 2, 3, 67, 149, 150), (0, 5, 12, 64, 65, 130, 131, 132, 150)]
SHAPES = [
    Shape(),
    Shape(heads=9, kv_heads=3, key_dim=64, value_dim=64, block_size=16),
    Shape(heads=4, kv_heads=1, key_dim=256, value_dim=256, block_size=16),
    Shape(heads=5, kv_heads=5, key_dim=32, value_dim=32, block_size=7),
    Shape(heads=6, kv_heads=6, key_dim=16, value_dim=16),
    Shape(heads=4, kv_heads=2, key_dim=40, value_dim=24),
    Shape(heads=7, kv_heads=1, key_dim=128, value_dim=128),
]


def run(paged: Paged, chunks: Sequence[Chunk], query: torch.Tensor, traits: LayerTraits) -> torch.Tensor:
    (spans,) = pack(chunks, [paged.group]).spans
    return NativeAttention(steady=True).plan(spans).attend(query, paged.memory.keys[0], paged.memory.values[0], traits)


@pytest.mark.parametrize("traits", TRAITS.values(), ids=TRAITS.keys())
@pytest.mark.parametrize("window", [None, 1, 12, 70])
def test_cuts_of_a_prompt_change_no_bit(window: int | None, traits: LayerTraits) -> None:
    paged = Paged(Shape(window=window), [(0, LENGTH)])
    whole = paged.attend(NativeAttention(steady=True), traits)
    table = list(paged.chunks[0].tables[0])

    for cuts in CUTS:
        chunks = [paged._chunk(0, start, end - start, table) for start, end in pairwise(cuts)]
        parts = [run(paged, [c], paged.query[:, c.start : c.start + c.length], traits) for c in chunks]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_decode_has_the_bits_of_the_prefill(shape: Shape, window: int | None) -> None:
    """All tokens of a sequence as decodes side by side in one step: tiles of other heights in another order."""
    shape = Shape(shape.heads, shape.kv_heads, shape.key_dim, shape.value_dim, shape.block_size, window)
    paged, traits = Paged(shape, [(0, LENGTH)]), LayerTraits(scale=shape.key_dim**-0.5)
    table = list(paged.chunks[0].tables[0])

    decodes = run(paged, [paged._chunk(0, at, 1, table) for at in range(LENGTH)], paged.query, traits)

    assert torch.equal(decodes, paged.attend(NativeAttention(steady=True), traits))
