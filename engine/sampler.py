"""From logits to one token per row: penalties, filters, and a draw by inverse distribution function.

The order is transformers': repetition penalty, then (OpenAI's) frequency and presence penalty, temperature, top-k,
top-p, min-p. A greedy row ends after the penalties. Rows of one batch may each ask for something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.random import uniforms
from engine.request import SamplingParams

_TILE_NUMBERS = 1 << 22  # rows x vocabulary processed at once
_SHORT_LIST = 1024  # candidates tried for top-p before a whole row is sorted
_HIDDEN = float("-inf")

Fill = Callable[[slice, torch.Tensor], None]
"""Writes the raw logits of a slice of the rows into a tensor [rows, vocabulary]."""


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One row that wants a token."""

    sampling: SamplingParams
    sample_index: int
    token_ids: Sequence[int]  # everything before the token that is wanted
    prompt_len: int


def is_plain_greedy(sampling: SamplingParams) -> bool:
    """True when the token is the argmax of the raw logits."""
    penalised = sampling.repetition_penalty != 1.0 or sampling.presence_penalty or sampling.frequency_penalty
    return sampling.temperature == 0 and not penalised


class Sampler:
    """Owns the buffers that a tile of rows is processed in; they grow to their bound once and stay."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._tile_rows = max(1, _TILE_NUMBERS // vocab_size)
        self._raw = torch.empty((0, vocab_size), device=device)
        self._scores = torch.empty((0, vocab_size), device=device)
        self._cumulative = torch.empty((0, vocab_size), dtype=torch.float64, device=device)

    def sample(self, rows: Sequence[SampleRow], fill: Fill) -> tuple[list[int], list[float]]:
        """Token and log-probability under the raw distribution for each row. Where a row's logits are not finite its
        log-probability is not finite either, and its token has no meaning."""
        tokens: list[int] = []
        logprobs: list[float] = []
        numbers = uniforms(
            [row.sampling.seed for row in rows],
            [row.sample_index for row in rows],
            [len(row.token_ids) for row in rows],
        )
        for begin in range(0, len(rows), self._tile_rows):
            tile = slice(begin, min(begin + self._tile_rows, len(rows)))
            picked, logprob = self._sample_tile(rows[tile], tile, fill, torch.from_numpy(numbers[tile]))
            tokens += picked
            logprobs += logprob
        return tokens, logprobs

    def _sample_tile(
        self, rows: Sequence[SampleRow], tile: slice, fill: Fill, numbers: torch.Tensor
    ) -> tuple[list[int], list[float]]:
        if len(self._raw) < len(rows):
            shape = (len(rows), self._vocab_size)
            self._raw, self._scores = self._raw.new_empty(shape), self._scores.new_empty(shape)
            self._cumulative = self._cumulative.new_empty(shape)
        raw, scores = self._raw[: len(rows)], self._scores[: len(rows)]
        fill(tile, raw)
        total = torch.logsumexp(raw, dim=1)
        # A row that is not finite spoils nothing but itself; zeros let the rest of the way run.
        raw[~torch.isfinite(total)] = 0.0
        scores.copy_(raw)
        process(scores, rows)
        token = scores.argmax(dim=1)
        if any(row.sampling.temperature > 0 for row in rows):
            greedy = torch.tensor([row.sampling.temperature == 0 for row in rows], device=self._device)
            drawn = draw(scores, numbers.to(self._device), self._cumulative[: len(rows)])
            token = torch.where(greedy, token, drawn)
        logprob = raw.gather(1, token[:, None])[:, 0] - total
        return token.tolist(), logprob.tolist()


def process(scores: torch.Tensor, rows: Sequence[SampleRow]) -> None:
    """Turn raw logits [rows, vocabulary] into those to draw from, in place; what is filtered out becomes -inf."""
    for index, row in enumerate(rows):
        _penalise(scores[index], row)
    device = scores.device
    drawn = [row.sampling if row.sampling.temperature > 0 else SamplingParams() for row in rows]
    if any(sampling.temperature not in (0.0, 1.0) for sampling in drawn):
        divisors = [sampling.temperature or 1.0 for sampling in drawn]
        scores.div_(torch.tensor(divisors, device=device)[:, None])
    _filter(scores, [float(sampling.top_k) for sampling in drawn], lambda value: value > 0, _top_k_floor)
    _filter(scores, [sampling.top_p for sampling in drawn], lambda value: value < 1, _top_p_floor)
    _filter(scores, [sampling.min_p for sampling in drawn], lambda value: value > 0, _min_p_floor)


def draw(scores: torch.Tensor, numbers: torch.Tensor, cumulative: torch.Tensor) -> torch.Tensor:
    """One token per row by inverse distribution function; `scores` are used up.

    Tokens are laid out by id, so that a change in the last bits of the logits moves the borders by as little.
    """
    weights = scores.sub_(scores.amax(dim=1, keepdim=True)).exp_()
    torch.cumsum(weights, dim=1, dtype=torch.float64, out=cumulative)
    total = cumulative[:, -1]
    # Rounding must not carry the target to the total: no token lies there.
    target = torch.minimum(numbers * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]


def _penalise(scores: torch.Tensor, row: SampleRow) -> None:
    """Penalties of one row, in place: repetition over prompt and output, frequency and presence over the output."""
    sampling = row.sampling
    if sampling.repetition_penalty != 1.0:
        seen = torch.from_numpy(np.unique(np.asarray(row.token_ids, dtype=np.int64))).to(scores.device)
        values = scores[seen]
        factor = sampling.repetition_penalty
        scores[seen] = torch.where(values < 0, values * factor, values / factor)
    if sampling.frequency_penalty or sampling.presence_penalty:
        output = np.asarray(row.token_ids[row.prompt_len :], dtype=np.int64)
        ids, counts = np.unique(output, return_counts=True)
        penalty = sampling.frequency_penalty * counts + sampling.presence_penalty
        scores[torch.from_numpy(ids).to(scores.device)] -= torch.from_numpy(penalty).to(scores)


def _filter(
    scores: torch.Tensor,
    options: Sequence[float],
    is_on: Callable[[float], bool],
    floor: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    """Hide what lies below the floor, in the rows whose option is on. `floor` maps the rows' scores and options
    [rows, 1] to the lowest score that stays, [rows, 1]."""
    chosen = [index for index, value in enumerate(options) if is_on(value)]
    if not chosen:
        return
    values = torch.tensor([options[index] for index in chosen], dtype=torch.float64, device=scores.device)[:, None]
    if len(chosen) == len(options):
        scores.masked_fill_(scores < floor(scores, values), _HIDDEN)
    else:
        index = torch.tensor(chosen, device=scores.device)
        part = scores[index]
        scores[index] = part.masked_fill_(part < floor(part, values), _HIDDEN)


def _top_k_floor(scores: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    count = top_k.long().clamp(max=scores.shape[1])
    highest = scores.topk(int(count.max()), dim=1).values
    return highest.gather(1, count - 1)


def _top_p_floor(scores: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The last token that is needed to reach `top_p` stays. Most rows reach it within a short list; only the others
    are sorted whole."""
    total = torch.logsumexp(scores, dim=1, keepdim=True)
    floor, reached = _nucleus(scores.topk(min(_SHORT_LIST, scores.shape[1]), dim=1).values, total, top_p)
    rest = torch.nonzero(~reached[:, 0])[:, 0]
    if len(rest):
        whole = scores[rest].sort(dim=1, descending=True).values
        floor[rest] = _nucleus(whole, total[rest], top_p[rest])[0]
    return floor


def _nucleus(descending: torch.Tensor, total: torch.Tensor, top_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest score of the nucleus within a sorted list, and whether the list reaches `top_p`; both [rows, 1]."""
    mass = (descending - total).exp().cumsum(dim=1, dtype=torch.float64)
    count = (mass < top_p).sum(dim=1, keepdim=True)  # one more is needed
    last = count.clamp(max=descending.shape[1] - 1)
    return descending.gather(1, last), mass[:, -1:] >= top_p


def _min_p_floor(scores: torch.Tensor, min_p: torch.Tensor) -> torch.Tensor:
    return scores.amax(dim=1, keepdim=True) + min_p.log().to(scores.dtype)
