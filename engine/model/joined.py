"""Layers that are given the same rows one after another, as an attention's projections are, computed at the first call.

Which ones these are is seen in a trial. A layer that is then given other rows is computed by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import groupby

import torch
from torch import nn

from engine.model.native_linear import NativeLinear
from engine.model.project import HeadTap


class JoinedProducts:
    """One product of some layers. Keeps the rows of a call and the results until the last layer has taken its own."""

    def __init__(self, layers: list[NativeLinear]) -> None:
        self._layers = layers
        self._rows: torch.Tensor | None = None
        self._results: dict[NativeLinear, torch.Tensor] = {}

    def result(self, layer: NativeLinear, rows: torch.Tensor) -> torch.Tensor:
        if layer is self._layers[0]:
            results = NativeLinear.products(self._layers, rows)
            self._rows, self._results = rows, dict(zip(self._layers, results, strict=True))
        found = self._results.pop(layer, None) if rows is self._rows else None
        if not self._results:
            self._rows = None
        return layer.product(rows) if found is None else found


def join_products(model: nn.Module, tap: HeadTap | None, run: Callable[[], object]) -> int:
    """`run` runs the model over a few rows, of which the last layer is narrowed to one, as in most prefills. Returns
    how many products there are of more than one layer."""
    calls = _calls(model, tap, run)
    times = Counter(layer for layer, _ in calls)
    count = 0
    for _, given in groupby(calls, key=lambda call: id(call[1])):
        together = [layer for layer, _ in given]
        if len(together) > 1 and all(times[layer] == 1 for layer in together):
            joined = JoinedProducts(together)
            for layer in together:
                layer.joined = joined
            count += 1
    return count


def _calls(model: nn.Module, tap: HeadTap | None, run: Callable[[], object]) -> list[tuple[NativeLinear, torch.Tensor]]:
    """Every layer with the rows that it was given, in order."""
    calls: list[tuple[NativeLinear, torch.Tensor]] = []
    layers = [module for module in model.modules() if type(module) is NativeLinear]
    hooks = [layer.register_forward_pre_hook(lambda layer, args: calls.append((layer, args[0]))) for layer in layers]
    if tap is not None:
        tap.columns = torch.zeros(1, dtype=torch.int64, device=tap.weight.device)
    try:
        run()
    finally:
        if tap is not None:
            tap.columns = None
        for hook in hooks:
            hook.remove()
    return calls
