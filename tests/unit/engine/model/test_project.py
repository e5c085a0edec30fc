"""The output layer in tiles, and what a model does after it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.model.native_linear import NativeLinears
from engine.model.packed import LinearMaker, OneDnnLinear, plain_linear
from engine.model.project import TILE_COLUMNS, AfterProjection, cut_head, fill_logits, given_tiles, recognise
from engine.model.steady import SteadyLinear


@pytest.mark.parametrize(
    "after", [AfterProjection(), AfterProjection("softcap", 30.0), AfterProjection("scale", 0.125)]
)
def test_what_follows_the_projection_is_recognised(after: AfterProjection) -> None:
    raw = torch.randn(12, 99, generator=torch.Generator().manual_seed(0)) * 20

    assert recognise(raw, after.apply_(raw.clone()), softcap=30.0) == after


def test_anything_else_is_not_recognised() -> None:
    raw = torch.randn(12, 99, generator=torch.Generator().manual_seed(0))

    assert recognise(raw, raw + torch.arange(99), softcap=None) is None
    assert recognise(raw, raw[:, :50], softcap=None) is None


@pytest.mark.parametrize("make", [plain_linear, OneDnnLinear, SteadyLinear, NativeLinears()])
@pytest.mark.parametrize("bias", [False, True])
def test_tiles_make_up_the_whole_row(make: LinearMaker, bias: bool) -> None:
    torch.manual_seed(2)
    linear = nn.Linear(8, TILE_COLUMNS + 100, bias=bias).requires_grad_(False)
    rows = torch.randn(3, 8)
    out = torch.empty(3, TILE_COLUMNS + 100)

    fill_logits(cut_head(linear, make, AfterProjection("scale", 2.0)), rows, out)

    torch.testing.assert_close(out, linear(rows) * 2)


def test_logits_that_the_model_made_are_not_changed_by_the_receiver() -> None:
    logits = torch.randn(2, TILE_COLUMNS + 5)
    before = logits.clone()

    for _, tile in given_tiles(logits):
        tile.zero_()

    assert torch.equal(logits, before)
