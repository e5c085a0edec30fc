"""The last layer computes only what is still read: of a prompt's tokens, all keys and values, but the query, the
attention's output and the feed-forward part only of rows that sample. After this layer no row is mixed with another.

Which parts may be narrowed so is tried out at load: the rows that sample must keep their logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from engine.model.elementwise import FusedGate
from engine.model.layers import DeclaredLayer
from engine.model.packed import PackedLinear
from engine.model.project import HeadTap

_QUERIES = ("q_proj", "o_proj")  # names of transformers, in the layer's attention
_SAVES = 2  # a step of which at least every second row samples runs as it is
_TOLERANCE = 1e-5  # of the largest logit


class Narrowed(nn.Module):
    """`own` for the rows that sample, and zeros for the others."""

    def __init__(self, own: nn.Module, tap: HeadTap) -> None:
        super().__init__()
        self.own = own
        self._tap = (tap,)  # not as a module of this one: it has its place in the model already

    def columns_of(self, tokens: int) -> torch.Tensor | None:
        """Those of the rows that sample, of `tokens`. None: all of them run."""
        columns = self._tap[0].columns
        return None if columns is None or _SAVES * len(columns) > tokens else columns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = self.columns_of(x.shape[-2])
        if columns is None:
            out: torch.Tensor = self.own(x)
            return out
        rows: torch.Tensor = self.own(x.index_select(-2, columns))
        return rows.new_zeros((*x.shape[:-1], rows.shape[-1])).index_copy_(-2, columns, rows)


def narrow_last_layer(model: Any, tap: HeadTap, layer: DeclaredLayer, logits: Callable[[], torch.Tensor]) -> int:
    """`layer` is what the configuration says of the last layer; `logits` gives those of all rows of a trial that
    sample. Returns how many parts were narrowed: none where that changes the last row."""
    parts = _parts(_last_layer(model), layer)
    if not parts:
        return 0
    expected = logits()
    for parent, name in parts:
        setattr(parent, name, Narrowed(getattr(parent, name), tap))
    tap.columns = torch.tensor([len(expected) - 1], device=expected.device)
    try:
        found = logits()
    finally:
        tap.columns = None
    if torch.allclose(found[-1], expected[-1], rtol=0.0, atol=_TOLERANCE * float(expected.abs().max())):
        return len(parts)
    for parent, name in parts:
        setattr(parent, name, getattr(parent, name).own)
    return 0


def _last_layer(model: Any) -> nn.Module | None:
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    return layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None


def _parts(module: nn.Module | None, layer: DeclaredLayer) -> list[tuple[nn.Module, str]]:
    """Parent and name of each: what is given the packed row as it is, and treats every row by itself. Not what stands
    deeper, as an expert does, nor the queries of a layer with a state, which may become part of it."""
    if module is None:
        return []
    gates = [(module, name) for name, child in module.named_children() if isinstance(child, FusedGate)]
    if layer.has_state or layer.reads is None:
        return gates
    return gates + [
        (attention, name)
        for attention in module.children()
        for name, child in attention.named_children()
        if isinstance(child, PackedLinear) and name in _QUERIES
    ]
