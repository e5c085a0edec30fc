"""Linear layers whose products give a row the same bits in every batch, tried out at load on this very processor."""

from __future__ import annotations

import torch

from engine.errors import ModelRefused
from engine.model.packed import Linear, LinearMaker, OneDnnLinear

_TRIED = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 192, 256)


class SteadyLinear(OneDnnLinear):
    """A row alone comes with a copy of itself: oneDNN multiplies a single row by other code, in another order of sums
    (AVX-512, more than 1,024 inputs)."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.numel() != self.in_features:
            return super().forward(rows)
        both = super().forward(rows.reshape(1, -1).repeat(2, 1))
        return both[:1].view(*rows.shape[:-1], self.out_features)


class SteadyLinears:
    """Makes linear layers by `make`, and tries each shape once in batches of up to `most_rows`."""

    def __init__(self, most_rows: int, make: LinearMaker = SteadyLinear) -> None:
        self._most_rows = most_rows
        self._make = make
        self._tried: set[tuple[int, int]] = set()

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
        """Raises ModelRefused if the batch shows in a row's bits."""
        linear = self._make(weight, bias)
        shape = (weight.shape[0], weight.shape[1])
        if shape not in self._tried:
            self._try(linear, *shape)
            self._tried.add(shape)
        return linear

    @torch.inference_mode()
    def _try(self, linear: Linear, outputs: int, inputs: int) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn((self._most_rows, inputs), generator=generator)
        whole = linear(rows)
        for number, count in enumerate(_TRIED):
            first = 0 if number % 2 else self._most_rows - count
            if 0 <= first <= self._most_rows - count and not torch.equal(
                linear(rows[first : first + count]), whole[first : first + count]
            ):
                raise ModelRefused(
                    f"strict mode: a linear layer of {outputs} x {inputs} gives a row other "
                    f"bits in a batch of {count} than in one of {self._most_rows} on this processor"
                )
