"""The output projection, in tiles of the vocabulary: no tensor of batch x vocabulary is made anew in a step.

A tap takes the place of the model's output layer. It keeps the hidden rows that sample, and hands the model one
column back, so that the model's own code after the projection costs nothing. What that code does (a softcap, a
scale) is recognised once, at load, and applied to each tile in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from engine.attention.pick import Best
from engine.model.native_linear import NativeLinear
from engine.model.packed import Linear, LinearMaker

TILE_COLUMNS = 16_384


@dataclass(frozen=True, slots=True)
class AfterProjection:
    """What the model does to its logits: nothing, `value * tanh(x / value)`, or `x * value`."""

    kind: Literal["nothing", "softcap", "scale"] = "nothing"
    value: float = 1.0

    def apply_(self, logits: torch.Tensor) -> torch.Tensor:
        if self.kind == "softcap":
            return logits.div_(self.value).tanh_().mul_(self.value)
        if self.kind == "scale":
            return logits.mul_(self.value)
        return logits


def recognise(raw: torch.Tensor, final: torch.Tensor, softcap: float | None) -> AfterProjection | None:
    """What turns `raw` logits into the model's `final` ones, or None when it is none of the known things."""
    if raw.shape != final.shape:
        return None
    peak = int(raw.abs().argmax())
    scale = float(final.flatten()[peak] / raw.flatten()[peak])
    candidates = [AfterProjection(), AfterProjection("scale", scale)]
    if softcap:
        candidates.append(AfterProjection("softcap", float(softcap)))
    for candidate in candidates:
        if torch.allclose(candidate.apply_(raw.clone()), final, rtol=1e-5, atol=1e-5):
            return candidate
    return None


class HeadTap(nn.Module):
    """Stands where the output layer stood. `columns` says which rows of the packed row sample in this step."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear: nn.Module = linear
        self.weight = linear.weight.new_empty(0)  # some models read its dtype
        self.passes_through = True  # False: only keep the hidden rows
        self.columns: torch.Tensor | None = None
        self.hidden: torch.Tensor | None = None  # [rows, hidden_size], of the last forward pass

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.columns is not None:
            hidden = hidden.index_select(1, self.columns)
        self.hidden = hidden[0]
        if self.passes_through:
            return self.linear(hidden)  # type: ignore[no-any-return]
        return hidden[..., :1]

    def take(self) -> torch.Tensor:
        """The hidden rows of the last forward pass; they are not kept any longer."""
        hidden, self.hidden = self.hidden, None
        assert hidden is not None, "the model did not reach its output layer"
        return hidden


Tiles = Callable[[torch.Tensor], Iterator[tuple[int, torch.Tensor]]]
"""From rows to (first column, logits [rows, width] in float32). The receiver may overwrite each tile."""


class ProjectedTiles:
    """Logits computed here, tile by tile, from hidden rows."""

    def __init__(self, tiles: Sequence[Linear], width: int, after: AfterProjection, picks: bool = True) -> None:
        self._tiles = tuple(tiles)
        self._picks = picks and all(isinstance(tile, NativeLinear) for tile in tiles)
        self._width = width
        self._after = after

    def pick(self, hidden: torch.Tensor, best: Best) -> bool:
        """Carry `best` over all tiles, whose logits are kept nowhere. False, and nothing done, where that cannot be."""
        if self._after.kind != "nothing" or not self._picks:
            return False
        for index, tile in enumerate(self._tiles):
            assert isinstance(tile, NativeLinear)
            tile.pick(hidden, index * self._width, best)
        return True

    def __call__(self, hidden: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        for index, tile in enumerate(self._tiles):
            yield index * self._width, self._after.apply_(tile(hidden).float())


def cut_head(linear: nn.Linear, make: LinearMaker, after: AfterProjection, picks: bool = True) -> ProjectedTiles:
    """Cut the output layer into tiles of columns; packing copies the weights, plain tiles are views of them."""
    vocab = linear.out_features
    tiles: list[Linear] = []
    for begin in range(0, vocab, TILE_COLUMNS):
        weight = linear.weight.detach()[begin : begin + TILE_COLUMNS]
        bias = None if linear.bias is None else linear.bias.detach()[begin : begin + TILE_COLUMNS]
        tiles.append(make(weight, bias))
    return ProjectedTiles(tiles, TILE_COLUMNS, after, picks)


def given_tiles(logits: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Logits that the model computed itself, [rows, vocabulary], as tiles."""
    for begin in range(0, logits.shape[1], TILE_COLUMNS):
        yield begin, logits[:, begin : begin + TILE_COLUMNS].float().clone()


def fill_logits(tiles: Tiles, rows: torch.Tensor, out: torch.Tensor) -> None:
    """Write the rows' logits into `out` [rows, vocabulary]."""
    for begin, tile in tiles(rows):
        out[:, begin : begin + tile.shape[1]] = tile
