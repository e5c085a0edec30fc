"""A steady linear layer gives a row the same bits alone, in any batch, and at any place in it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from engine.errors import ModelRefused
from engine.model.steady import SteadyLinear, SteadyLinears


@pytest.mark.parametrize("shape", [(1, 2), (3,), (1, 1), (1,)])
def test_it_is_a_linear_layer_for_rows_of_any_shape(shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    weight, bias, rows = torch.randn(24, 1100), torch.randn(24), torch.randn(*shape, 1100)

    got = SteadyLinear(weight, bias)(rows)

    torch.testing.assert_close(got, functional.linear(rows, weight, bias), rtol=1e-4, atol=1e-4)


def test_a_row_alone_has_the_bits_that_it_has_in_company() -> None:
    """More than 1,024 inputs: where oneDNN has another kernel for a single row."""
    torch.manual_seed(3)
    linear, rows = SteadyLinear(torch.randn(40, 1536), None), torch.randn(9, 1536)

    together = linear(rows)

    assert all(torch.equal(linear(rows[i : i + 1]), together[i : i + 1]) for i in range(9))


def test_a_shape_whose_bits_depend_on_the_batch_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SteadyLinear, "forward", lambda self, rows: rows.sum() + rows @ self.weight.to_dense().T)

    with pytest.raises(ModelRefused, match="24 x 48 gives a row other bits in a batch of 1 than in one of 64"):
        SteadyLinears(64)(torch.randn(24, 48), None)
