"""Penalties, filters and the draw in plain torch, on any device: what the C kernel for drawing equals.

The order is transformers': repetition penalty, then (OpenAI's) frequency and presence penalty, temperature, top-k,
top-p, min-p. A greedy row ends after the penalties. Rows of one batch may each ask for something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from engine.request import SamplingParams

_SHORT_LIST = 1024  # candidates tried for top-p before a whole row is sorted
_HIDDEN = float("-inf")


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One row that wants a token."""

    sampling: SamplingParams
    sample_index: int
    token_ids: Sequence[int]  # everything before the token that is wanted
    prompt_len: int


def is_penalised(sampling: SamplingParams) -> bool:
    """True when what a row holds already changes its logits."""
    return bool(sampling.repetition_penalty != 1.0 or sampling.presence_penalty or sampling.frequency_penalty)


def is_plain_greedy(sampling: SamplingParams) -> bool:
    """True when the token is the argmax of the raw logits."""
    return sampling.is_greedy and not is_penalised(sampling)


class Room:
    """The tensors that a part of the rows is processed in, kept from step to step: an allocation of this size costs
    more than what is computed in it."""

    def __init__(self, rows: int, like: torch.Tensor) -> None:
        shape = (rows, like.shape[1])
        self.part = like.new_empty(shape)  # the rows that an option is on for
        self.rest = like.new_empty(shape)  # those of them that a short list does not do for
        self.ordered = like.new_empty(shape)  # their highest scores, in order; before that, a scratch pad
        self._wide = like.new_empty(shape, dtype=torch.float64)
        self._mask = like.new_empty(shape, dtype=torch.bool)

    def highest(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """The `count` highest scores of each row, in descending order."""
        whole = count == rows.shape[1]
        values = _cut(self.ordered, len(rows), count)
        order = _cut(self._wide.view(torch.int64), len(rows), count)
        if whole:
            torch.sort(rows, dim=1, descending=True, out=(values, order))
        else:
            torch.topk(rows, count, dim=1, out=(values, order))
        return values

    def cumulative(self, weights: torch.Tensor) -> torch.Tensor:
        """A place in float64 for the sums along the rows of `weights`, which it is a copy of."""
        return _cut(self._wide, *weights.shape).copy_(weights)

    def log_total(self, scores: torch.Tensor) -> torch.Tensor:
        """The logarithm of the sum of the exponentials, [rows, 1]; not finite where a score is not a number."""
        peak = scores.amax(dim=1, keepdim=True)
        weights = torch.sub(scores, peak, out=self.ordered[: len(scores)]).exp_()
        # Several threads would add up one row alone, in another order than that of each of two rows.
        several = weights.expand(2, -1) if len(weights) == 1 else weights
        return several.sum(dim=1, keepdim=True)[: len(weights)].log_().add_(peak)

    def hide_below(self, scores: torch.Tensor, floor: torch.Tensor) -> None:
        scores.masked_fill_(torch.lt(scores, floor, out=self._mask[: len(scores)]), _HIDDEN)


def _cut(kept: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The beginning of a kept tensor as [rows, columns], without gaps."""
    return kept.flatten()[: rows * columns].view(rows, columns)


def process(scores: torch.Tensor, rows: Sequence[SampleRow], room: Room | None = None) -> None:
    """Turn raw logits [rows, vocabulary] into those to draw from, in place; what is filtered out becomes -inf.

    Options beyond what numbers can hold leave a row without a finite maximum; it spoils no other.
    """
    room = room or Room(len(scores), scores)
    for index, row in enumerate(rows):
        penalise(scores[index], row)
    drawn = [SamplingParams(temperature=1.0) if row.sampling.is_greedy else row.sampling for row in rows]
    _divide(scores, [sampling.temperature for sampling in drawn])
    size = scores.shape[1]
    _filter(scores, [sampling.top_k for sampling in drawn], lambda value: 0 < value < size, _top_k_floor, room)
    _filter(scores, [sampling.top_p for sampling in drawn], lambda value: value < 1, _top_p_floor, room)
    _filter(scores, [sampling.min_p for sampling in drawn], lambda value: value > 0, _min_p_floor, room)


def draw(scores: torch.Tensor, peak: torch.Tensor, numbers: torch.Tensor, room: Room) -> torch.Tensor:
    """One token per row by inverse distribution function; `scores` are used up. `peak` is each row's maximum; a row
    where it is not finite gets some token.

    Tokens are laid out by id, so that a change in the last bits of the logits moves the borders by as little.
    """
    cumulative = room.cumulative(scores.sub_(peak[:, None]).exp_()).cumsum_(dim=1)
    total = cumulative[:, -1]
    # Rounding must not carry the target to the total: no token lies there.
    target = torch.minimum(numbers * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].clamp_(max=scores.shape[1] - 1)


def penalise(scores: torch.Tensor, row: SampleRow) -> None:
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


def _divide(scores: torch.Tensor, temperatures: Sequence[float]) -> None:
    """Divide each row by its temperature. Where the quotient would overflow, the row's maximum goes first."""
    if all(temperature == 1.0 for temperature in temperatures):
        return
    highest = torch.finfo(scores.dtype).max
    divisors = torch.tensor([min(each, highest) for each in temperatures], dtype=scores.dtype, device=scores.device)
    divisors = divisors[:, None]
    if any(temperature < 1 for temperature in temperatures):
        peak = scores.amax(dim=1, keepdim=True)
        overflows = ~torch.isfinite(peak / divisors)
        # Elsewhere the scores stay, to the bit, what transformers makes of them.
        if bool(overflows.any()):
            scores.sub_(torch.where(overflows, peak, 0.0))
    scores.div_(divisors)


def _filter(
    scores: torch.Tensor,
    options: Sequence[float],
    is_on: Callable[[float], bool],
    floor: Callable[[torch.Tensor, torch.Tensor, Room], torch.Tensor],
    room: Room,
) -> None:
    """Hide what lies below the floor, in the rows whose option is on. `floor` maps the rows' scores and options
    [rows, 1] to the lowest score that stays, [rows, 1], and may not use the room's `part`."""
    chosen = [index for index, value in enumerate(options) if is_on(value)]
    if not chosen:
        return
    values = torch.tensor([options[index] for index in chosen], dtype=torch.float64, device=scores.device)[:, None]
    if len(chosen) == len(options):
        room.hide_below(scores, floor(scores, values, room))
    else:
        index = torch.tensor(chosen, device=scores.device)
        part = torch.index_select(scores, 0, index, out=room.part[: len(chosen)])
        room.hide_below(part, floor(part, values, room))
        scores.index_copy_(0, index, part)


def _top_k_floor(scores: torch.Tensor, top_k: torch.Tensor, room: Room) -> torch.Tensor:
    count = top_k.long()
    return room.highest(scores, int(count.max())).gather(1, count - 1)


def _top_p_floor(scores: torch.Tensor, top_p: torch.Tensor, room: Room) -> torch.Tensor:
    """The last token that is needed to reach `top_p` stays. Most rows reach it within a short list; only the others
    are sorted whole."""
    total = room.log_total(scores).double()
    floor, reached = _nucleus(scores, min(_SHORT_LIST, scores.shape[1]), total, top_p, room)
    rest = torch.nonzero(~reached[:, 0])[:, 0]
    if len(rest):
        whole = torch.index_select(scores, 0, rest, out=room.rest[: len(rest)])
        floor[rest] = _nucleus(whole, scores.shape[1], total[rest], top_p[rest], room)[0]
    return floor


def _nucleus(
    scores: torch.Tensor, count: int, total: torch.Tensor, top_p: torch.Tensor, room: Room
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest score of the nucleus within the `count` highest, and whether these reach `top_p`; both [rows, 1]."""
    descending = room.highest(scores, count)
    mass = room.cumulative(descending).sub_(total).exp_().cumsum_(dim=1)
    last = torch.searchsorted(mass, top_p).clamp_(max=count - 1)  # those before it do not reach top_p
    return descending.gather(1, last), mass[:, -1:] >= top_p


def _min_p_floor(scores: torch.Tensor, min_p: torch.Tensor, _room: Room) -> torch.Tensor:
    return scores.amax(dim=1, keepdim=True) + min_p.log().to(scores.dtype)
