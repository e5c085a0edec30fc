"""Every way to compute attention equals the specification: one test feeds them all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch

from engine.attention.base import AttentionBackend, LayerTraits
from engine.attention.compile import CannotCompile
from engine.attention.cpu import NativeAttention
from engine.attention.plain import PlainAttention
from engine.attention.reference import attend_reference
from engine.cache.groups import LayerGroup
from engine.model.batch import pack
from engine.model.memory import KVMemory
from engine.request import SamplingParams
from engine.step import NULL_BLOCK, Chunk

BACKENDS: dict[str, Callable[[], AttentionBackend]] = {
    "plain": lambda: PlainAttention(torch.device("cpu")),
    "native": NativeAttention,
    "native, steady": lambda: NativeAttention(steady=True),
}


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> AttentionBackend:
    return BACKENDS[request.param]()


@dataclass(frozen=True, slots=True)
class Shape:
    heads: int = 6
    kv_heads: int = 2
    key_dim: int = 16
    value_dim: int = 24
    block_size: int = 4
    window: int | None = None


class Paged:
    """Sequences with random keys and values, laid out both contiguously and in scattered blocks."""

    def __init__(self, shape: Shape, spans: Sequence[tuple[int, int]], seed: int = 3) -> None:
        self.shape = shape
        self.group = LayerGroup(
            index=0,
            kind="full" if shape.window is None else "sliding",
            layers=(0,),
            block_size=shape.block_size,
            window=shape.window,
            num_kv_heads=shape.kv_heads,
            key_dim=shape.key_dim,
            value_dim=shape.value_dim,
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.chunks, self.contiguous = [], []
        widest = max(start + length for start, length in spans) // shape.block_size + 1
        self.memory = KVMemory([self.group], 1 + len(spans) * widest, torch.float32, torch.device("cpu"))
        for number, (start, length) in enumerate(spans):
            table = [1 + number + len(spans) * position for position in range(widest)]
            self.contiguous.append(self._store(table, start + length))
            hidden = 0 if shape.window is None else max(0, start - shape.window + 1) // shape.block_size
            self.chunks.append(self._chunk(number, start, length, [NULL_BLOCK] * hidden + table[hidden:]))
        self.packed = pack(self.chunks, [self.group])
        self.query = self.random(shape.heads, self.packed.spans[0].num_tokens, shape.key_dim)

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def _store(self, table: list[int], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        size = self.shape.block_size
        keys = self.random(self.shape.kv_heads, length, self.shape.key_dim)
        values = self.random(self.shape.kv_heads, length, self.shape.value_dim)
        slots = torch.tensor([table[position // size] * size + position % size for position in range(length)])
        self.memory.keys[0][:, slots], self.memory.values[0][:, slots] = keys, values
        return keys, values

    def _chunk(self, number: int, start: int, length: int, table: list[int]) -> Chunk:
        return Chunk(
            sequence_id=number,
            token_ids=list(range(start + length)),
            start=start,
            length=length,
            tables=(table,),
            sample_indices=(0,),
            sampling=SamplingParams(),
            prompt_len=start + length,
        )

    def expected(self, traits: LayerTraits) -> torch.Tensor:
        parts, column = [], 0
        for chunk, (keys, values) in zip(self.chunks, self.contiguous, strict=True):
            query = self.query[:, column : column + chunk.length]
            parts.append(
                attend_reference(query, keys, values, start=chunk.start, window=self.shape.window, traits=traits)
            )
            column += chunk.length
        return torch.cat(parts)

    def attend(self, backend: AttentionBackend, traits: LayerTraits) -> torch.Tensor:
        plan = backend.plan(self.packed.spans[0])
        return plan.attend(self.query, self.memory.keys[0], self.memory.values[0], traits)


MIXED = [(0, 1), (9, 1), (300, 1), (0, 37), (63, 1), (64, 1), (130, 50), (17, 3)]
TRAITS = {
    "scale": LayerTraits(scale=0.25),
    "softcap": LayerTraits(scale=1.0, softcap=2.0),
    "sinks": LayerTraits(scale=0.25, sinks=torch.tensor([-1.0, 0.0, 1.0, 2.0, 5.0, -3.0])),
    "softcap and sinks": LayerTraits(scale=1.0, softcap=3.0, sinks=torch.linspace(-2, 2, 6)),
}


@pytest.mark.parametrize("traits", TRAITS.values(), ids=TRAITS.keys())
@pytest.mark.parametrize("window", [None, 1, 5, 12, 200])
def test_mixed_decodes_and_prefills_equal_the_reference(
    backend: AttentionBackend, window: int | None, traits: LayerTraits
) -> None:
    paged = Paged(Shape(window=window), MIXED)

    torch.testing.assert_close(paged.attend(backend, traits), paged.expected(traits), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    "shape",
    [
        Shape(heads=1, kv_heads=1, key_dim=8, value_dim=8, block_size=1),
        Shape(heads=9, kv_heads=3, key_dim=64, value_dim=64, block_size=16),
        Shape(heads=4, kv_heads=1, key_dim=256, value_dim=256, block_size=16, window=50),
        Shape(heads=5, kv_heads=5, key_dim=32, value_dim=32, block_size=7),
        Shape(heads=32, kv_heads=1, key_dim=40, value_dim=64, block_size=128),
    ],
)
def test_head_and_block_shapes_equal_the_reference(backend: AttentionBackend, shape: Shape) -> None:
    paged, traits = Paged(shape, MIXED), LayerTraits(scale=shape.key_dim**-0.5)

    torch.testing.assert_close(paged.attend(backend, traits), paged.expected(traits), rtol=2e-5, atol=2e-6)


def test_strided_queries_equal_contiguous_ones(backend: AttentionBackend) -> None:
    paged, traits = Paged(Shape(), MIXED), LayerTraits(scale=0.25)
    expected = paged.attend(backend, traits)

    paged.query = paged.query.transpose(0, 1).contiguous().transpose(0, 1)

    assert torch.equal(paged.attend(backend, traits), expected)


def test_a_long_chunk_is_cut_into_tiles_without_changing_it(backend: AttentionBackend) -> None:
    paged, traits = Paged(Shape(block_size=16), [(700, 900)]), LayerTraits(scale=0.25)

    torch.testing.assert_close(paged.attend(backend, traits), paged.expected(traits), rtol=2e-5, atol=2e-6)


def test_a_sequence_that_is_not_finite_spoils_nobody_else(backend: AttentionBackend) -> None:
    paged, traits = Paged(Shape(), [(30, 1), (21, 1), (25, 1)]), LayerTraits(scale=0.25)
    expected = paged.expected(traits)
    poisoned = paged.packed.spans[0].tables[1]
    for block in poisoned[poisoned != NULL_BLOCK]:
        paged.memory.keys[0][:, block * 4 : block * 4 + 4] = float("nan")

    got = paged.attend(backend, traits)

    assert torch.isnan(got[1]).all()
    torch.testing.assert_close(got[[0, 2]], expected[[0, 2]], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("what", ["key", "value"])
@pytest.mark.parametrize("window", [None, 1, 5, 12])
@pytest.mark.parametrize("span", [(0, 37), (130, 50), (17, 3), (62, 8), (0, 80)])
def test_a_token_that_is_not_finite_spoils_those_alone_that_see_it(
    backend: AttentionBackend, span: tuple[int, int], window: int | None, what: str
) -> None:
    """Tokens before it share blocks with prompts that have no such token."""
    (start, length), shape, traits = span, Shape(window=window), LayerTraits(scale=0.25)
    paged = Paged(shape, [span])
    expected = paged.expected(traits)
    position = start + length * 2 // 3
    keys, values = paged.contiguous[0]
    if what == "key":
        keys[:, position] = float("nan")
    else:
        values[1, position, 3] = float("inf")
    slot = paged.chunks[0].tables[0][position // 4] * 4 + position % 4
    paged.memory.keys[0][:, slot], paged.memory.values[0][:, slot] = keys[:, position], values[:, position]

    for got in (paged.attend(backend, traits), paged.expected(traits)):
        for row in range(length):
            sees = start + row >= position and (window is None or start + row - window < position)
            assert bool(got[row].isfinite().all()) != sees
            if not sees:
                torch.testing.assert_close(got[row], expected[row], rtol=2e-5, atol=2e-6)


def test_neighbours_change_no_bit_of_the_native_kernel() -> None:
    traits, backend = LayerTraits(scale=0.25), NativeAttention()
    paged = Paged(Shape(), MIXED)
    together = paged.attend(backend, traits)

    for number, chunk in enumerate(paged.chunks):
        column = int(paged.packed.spans[0].offsets[number])
        alone = backend.plan(pack([chunk], [paged.group]).spans[0]).attend(
            paged.query[:, column : column + chunk.length], paged.memory.keys[0], paged.memory.values[0], traits
        )
        assert torch.equal(alone, together[column : column + chunk.length])


def test_without_a_compiler_the_reason_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("CC", "/no/such/compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    with pytest.raises(CannotCompile, match="did not run"):
        NativeAttention()
