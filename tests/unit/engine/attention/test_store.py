"""This step's keys and values reach their slots, whatever strides they come with."""

import pytest
import torch

from engine.attention.base import AttentionBackend
from engine.attention.cpu import NativeAttention
from engine.attention.plain import PlainAttention

HEADS, SLOTS, TOKENS = 3, 64, 11


@pytest.fixture(params=["native", "torch"])
def backend(request: pytest.FixtureRequest) -> AttentionBackend:
    return NativeAttention() if request.param == "native" else PlainAttention(torch.device("cpu"))


def strided(kind: str, dim: int) -> torch.Tensor:
    """Rows [HEADS, TOKENS, dim] as layers hand them over."""
    if kind == "head first":
        return torch.randn(HEADS, TOKENS, dim)
    if kind == "token first":
        return torch.randn(TOKENS, HEADS, dim).transpose(0, 1)
    if kind == "part of a wider product":
        return torch.randn(TOKENS, 5 * HEADS, dim)[:, HEADS : 2 * HEADS].transpose(0, 1)
    return torch.randn(HEADS, dim, TOKENS).transpose(1, 2)


@pytest.mark.parametrize("kind", ["head first", "token first", "part of a wider product", "number by number"])
@pytest.mark.parametrize("dim", [8, 24, 64, 256])
def test_rows_reach_their_slots_and_no_others(backend: AttentionBackend, kind: str, dim: int) -> None:
    pool = torch.full((HEADS, SLOTS, dim), -7.0)
    slots = torch.randperm(SLOTS)[:TOKENS]
    rows = strided(kind, dim)

    backend.store(pool, slots, rows)

    assert torch.equal(pool[:, slots], rows)
    assert (pool[:, [slot for slot in range(SLOTS) if slot not in slots.tolist()]] == -7.0).all()
