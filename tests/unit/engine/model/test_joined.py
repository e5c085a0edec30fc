"""Layers that are given the same rows are one product, and each still gives what it would give alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from engine.model.joined import join_products
from engine.model.native_linear import NativeLinears
from engine.model.packed import pack_linears
from engine.model.project import HeadTap


class Attention(nn.Module):
    """Three layers of the same rows, then one of others; `asks_all` False leaves the second one out."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(24, width, bias=width > 40) for width in (70, 16, 33))
        self.out = nn.Linear(70, 24)
        self.asks_all = True

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        query = self.query(rows)
        key = self.key(rows) if self.asks_all else 0.0
        return torch.cat([self.out(query), self.value(rows), key + torch.zeros(len(rows), 16)], dim=-1)


@pytest.fixture
def model() -> Iterator[Attention]:
    torch.manual_seed(0)
    model = Attention().requires_grad_(False)
    pack_linears(model, NativeLinears())
    before = torch.get_num_threads()
    yield model
    torch.set_num_threads(before)


def few(model: nn.Module) -> torch.Tensor:
    out: torch.Tensor = model(torch.randn(3, 24))
    return out


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 5, 8, 300])
def test_joined_layers_give_the_same_bits(model: Attention, threads: int, count: int) -> None:
    rows = torch.randn(count, 24)
    expected = model(rows)
    torch.set_num_threads(threads)

    products = join_products(model, None, lambda: few(model))

    assert products == 1
    assert torch.equal(model(rows), expected)


def test_a_layer_that_is_given_other_rows_is_computed_alone(model: Attention) -> None:
    join_products(model, None, lambda: few(model))
    rows, others = torch.randn(4, 24), torch.randn(4, 24)
    expected = model.key.product(others)  # type: ignore[operator]

    model.query(rows)

    assert torch.equal(model.key(others), expected)
    assert torch.equal(model.value(rows), model.value.product(rows))  # type: ignore[operator]


def test_a_layer_that_is_left_out_leaves_nothing_to_the_next_rows(model: Attention) -> None:
    rows, others = torch.randn(4, 24), torch.randn(4, 24)
    expected = model(others)
    join_products(model, None, lambda: few(model))
    model.asks_all = False
    model(rows)
    model.asks_all = True

    assert torch.equal(model(others), expected)


def test_layers_that_the_last_layer_narrows_are_left_out(model: Attention) -> None:
    tap = HeadTap(nn.Linear(24, 8))
    seen: list[int] = []

    def run() -> None:
        assert tap.columns is not None
        seen.append(len(tap.columns))
        model.key(model.query(torch.randn(3, 24))[:, :24])
        model.value(torch.randn(3, 24))

    assert join_products(model, tap, run) == 0
    assert seen == [1]
    assert tap.columns is None


def test_layers_that_are_called_twice_are_left_out(model: Attention) -> None:
    assert join_products(model, None, lambda: (few(model), few(model))) == 0
