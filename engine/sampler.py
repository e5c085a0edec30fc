"""From logits to one token per row: in one pass of the C kernel on CPU, in plain torch elsewhere.

Both compute what `engine.filters` says, but for rounding: another token only where the number drawn falls on the border
of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.attention.draw import DrawRow, NativeDraw
from engine.filters import Room, SampleRow, draw, is_penalised, penalise, process
from engine.random import uniforms

_TILE_NUMBERS = 1 << 26  # rows x vocabulary of logits that are projected at once; each time reads all weights
_TILE_ROWS = 256  # more in one product gain nothing
_PART_NUMBERS = 1 << 21  # and of those, what is processed at once, where that takes a copy

Fill = Callable[[slice, torch.Tensor], None]
"""Writes the raw logits of a slice of the rows into a tensor [rows, vocabulary]."""
Picked = tuple[list[int | None], list[float]]
"""Of each row, its token and its log-probability."""


class Sampler:
    """Owns the buffers that a tile of rows is processed in; they grow to their bound once and stay. The logits of a
    tile take 256 MB at most, a copy of some of them 8 MB, and what plain torch needs beside them another 42 MB."""

    def __init__(self, vocab_size: int, device: torch.device, native: NativeDraw | None = None) -> None:
        self._device = device
        self._native = native
        self._tile_rows = max(1, min(_TILE_ROWS, _TILE_NUMBERS // vocab_size))
        self._part_rows = max(1, _PART_NUMBERS // vocab_size)
        self._raw = torch.empty((0, vocab_size), device=device)
        self._scores = torch.empty((0, vocab_size), device=device)
        self._room = Room(0, self._raw)

    def sample(self, rows: Sequence[SampleRow], fill: Fill) -> Picked:
        """Token and log-probability under the raw distribution for each row. Where a row's logits are not finite its
        log-probability is not finite either, and its token has no meaning. The token is None where the logits are
        finite, but the row's options leave nothing that could be drawn. No row's options ever raise."""
        tokens: list[int | None] = []
        logprobs: list[float] = []
        numbers = uniforms(
            [row.sampling.seed for row in rows],
            [row.sample_index for row in rows],
            [len(row.token_ids) for row in rows],
        )
        self._grow(len(rows))
        for begin in range(0, len(rows), self._tile_rows):
            tile = slice(begin, min(begin + self._tile_rows, len(rows)))
            raw = self._raw[: tile.stop - begin]
            fill(tile, raw)
            sample = self._sample_in_torch if self._native is None else self._sample_natively
            picked, logprob = sample(rows[tile], raw, numbers[tile])
            tokens += picked
            logprobs += logprob
        return tokens, logprobs

    def _grow(self, num_rows: int) -> None:
        tile, part = min(num_rows, self._tile_rows), min(num_rows, self._part_rows)
        if len(self._raw) < tile:
            self._raw = self._raw.new_empty((tile, self._raw.shape[1]))
        if len(self._scores) < part:
            self._scores = self._scores.new_empty((part, self._raw.shape[1]))
            if self._native is None:
                self._room = Room(part, self._raw)

    def _sample_natively(self, rows: Sequence[SampleRow], raw: torch.Tensor, numbers: NDArray[np.float64]) -> Picked:
        """Penalties are for copies, so penalised rows come a part at a time; all others at once."""
        tokens, totals = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
        penalised = [i for i, row in enumerate(rows) if is_penalised(row.sampling)]
        others = [i for i, row in enumerate(rows) if not is_penalised(row.sampling)]
        parts = [penalised[at : at + self._part_rows] for at in range(0, len(penalised), self._part_rows)]
        for part in [others, *parts]:
            wanted = []
            for place, i in enumerate(part):
                scores = raw[i]
                if part is not others:
                    scores = self._scores[place].copy_(raw[i])
                    penalise(scores, rows[i])
                wanted.append(DrawRow(raw[i], scores, rows[i].sampling, float(numbers[i])))
            if wanted:
                assert self._native is not None
                drawn = self._native.draw(wanted)
                tokens[part], totals[part] = drawn.tokens, drawn.totals
        logprobs = raw.numpy()[np.arange(len(rows)), np.maximum(tokens, 0)] - totals
        return [None if token < 0 else token for token in tokens.tolist()], logprobs.tolist()

    def _sample_in_torch(self, rows: Sequence[SampleRow], raw: torch.Tensor, numbers: NDArray[np.float64]) -> Picked:
        tokens: list[int | None] = []
        logprobs: list[float] = []
        for begin in range(0, len(rows), self._part_rows):
            part = slice(begin, begin + self._part_rows)
            picked, logprob = self._sample_part(rows[part], raw[part], torch.from_numpy(numbers[part]))
            tokens += picked
            logprobs += logprob
        return tokens, logprobs

    def _sample_part(self, rows: Sequence[SampleRow], raw: torch.Tensor, numbers: torch.Tensor) -> Picked:
        scores = self._scores[: len(rows)]
        total = self._room.log_total(raw)
        # A row that is not finite spoils nothing but itself; zeros let the rest of the way run.
        raw.masked_fill_(~torch.isfinite(total), 0.0)
        scores.copy_(raw)
        process(scores, rows, self._room)
        peak, token = scores.max(dim=1)
        usable = torch.isfinite(peak)  # a score that is not a number is the highest of its row
        if not all(row.sampling.is_greedy for row in rows):
            greedy = torch.tensor([row.sampling.is_greedy for row in rows], device=self._device)
            drawn = draw(scores, peak, numbers.to(self._device), self._room)
            token = torch.where(greedy, token, drawn)
        logprob = raw.gather(1, token[:, None]) - total
        picked = [each if good else None for each, good in zip(token.tolist(), usable.tolist(), strict=True)]
        return picked, logprob[:, 0].tolist()
