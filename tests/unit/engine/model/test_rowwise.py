"""What a model computes over the packed row gives each row its own bits, or is computed otherwise, or is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn import functional

from engine.errors import ModelRefused
from engine.model.rowwise import MEASURED, RowByRow, hold_row_by_row
from engine.model.steady import SteadyLinears

ROWS = 515
COUNTS = (1, 2, 3, 5, 8, 16, 17, 33, 64, 100, 128, 257, 512)
WIDTHS = (1, 4, 16, 60, 64, 1536)
REPLACED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu of tanh": lambda rows: functional.gelu(rows, approximate="tanh"),
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
    "pow": lambda rows: rows.abs().pow(0.3),
}
KEPT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda rows: torch.softmax(rows, -1),
    "log_softmax": lambda rows: torch.log_softmax(rows, -1),
    "sum": lambda rows: rows.sum(-1, keepdim=True),
    "mean": lambda rows: rows.mean(-1, keepdim=True),
    "norm": lambda rows: rows.norm(dim=-1, keepdim=True),
    "cumsum": lambda rows: rows.cumsum(-1),
    "layer_norm": lambda rows: functional.layer_norm(rows, (rows.shape[-1],)),
    "exp": torch.exp,
    "log": lambda rows: rows.abs().log(),
    "tanh": torch.tanh,
    "cos": lambda rows: torch.cos(rows * 50),
    "sin": lambda rows: torch.sin(rows * 50),
}


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def differing(function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> list[int]:
    """The batch sizes that show in the bits of some row, beside its bits alone."""
    alone = torch.cat([function(rows[i : i + 1]) for i in range(len(rows))])
    return [
        count
        for count in COUNTS
        for first in (0, len(rows) - count)
        if not torch.equal(function(rows[first : first + count].clone()), alone[first : first + count])
    ]


def random_rows(width: int) -> torch.Tensor:
    return torch.randn((ROWS, width), generator=torch.Generator().manual_seed(width)) * 3


def test_every_function_that_is_kept_as_measured_is_measured_here() -> None:
    assert KEPT.keys() == MEASURED


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", KEPT)
def test_functions_that_are_kept_give_a_row_the_same_bits_in_every_batch(name: str, width: int, threads: int) -> None:
    assert differing(KEPT[name], random_rows(width)) == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", REPLACED)
def test_functions_of_single_numbers_do_so_in_the_mode(name: str, width: int, threads: int) -> None:
    rows = random_rows(width)

    with RowByRow(nn.Module(), SteadyLinears(ROWS)):
        assert differing(REPLACED[name], rows) == []
        got = REPLACED[name](rows)

    torch.testing.assert_close(got, REPLACED[name](rows))


class Experts(nn.Module):
    """Products with parts of one tensor of weights, as transformers' experts have them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 96, 48))
        self.down = nn.Parameter(torch.randn(3, 96, 48))
        self.bias = nn.Parameter(torch.randn(3, 96))
        self.requires_grad_(False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(rows)
        for expert in torch.arange(3):
            up = functional.linear(rows, self.up[expert], self.bias[expert])
            out += functional.silu(up) @ self.down[expert]
        return out


def test_a_module_with_products_of_its_own_gives_a_row_the_same_bits_in_every_batch(threads: int) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(Experts())
    rows = torch.randn(ROWS, 48)
    expected = model(rows)

    count = hold_row_by_row(model, lambda: model(rows[:12]), (), SteadyLinears(ROWS))

    assert count == 1
    assert differing(model, rows) == []
    torch.testing.assert_close(model(rows), expected, rtol=1e-4, atol=1e-4)


class Convolution(nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.conv1d(rows[None, None], rows[None, None, :3])


class InPlace(nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.silu(rows, inplace=True)


class OwnProduct(nn.Module):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.linear(rows, rows * 2)


@pytest.mark.parametrize(("kind", "name"), [(Convolution, "conv1d"), (InPlace, "silu")])
def test_what_is_not_known_is_refused_by_name(kind: type[nn.Module], name: str) -> None:
    model = nn.Sequential(kind())

    with pytest.raises(ModelRefused, match=f"{kind.__name__} computes '{name}'"):
        hold_row_by_row(model, lambda: model(torch.ones(12)), (), SteadyLinears(64))


def test_known_modules_may_do_what_they_like() -> None:
    model = nn.Sequential(Convolution())

    assert hold_row_by_row(model, lambda: model(torch.ones(12)), [model[0]], SteadyLinears(64)) == 0


def test_a_product_with_something_else_than_a_weight_is_refused() -> None:
    model = nn.Sequential(OwnProduct())

    with pytest.raises(ModelRefused, match=r"OwnProduct multiplies by a matrix of \(4, 4\), which is no weight"):
        hold_row_by_row(model, lambda: model(torch.ones(4, 4)), (), SteadyLinears(64))
