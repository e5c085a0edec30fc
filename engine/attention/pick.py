"""Greedy choice over tiles of the vocabulary: a running maximum, and what it takes for its log-probability."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch


class NativePicks(ctypes.Structure):
    """As in kernel/6_pick.c: where the three tensors of `Best` lie."""

    _fields_ = (("maximum", ctypes.c_void_p), ("token", ctypes.c_void_p), ("total", ctypes.c_void_p))


@dataclass(frozen=True, slots=True)
class Best:
    """The best token so far of each row. Tensors of [rows], carried over the tiles in place."""

    logit: torch.Tensor
    token: torch.Tensor
    total: torch.Tensor  # sum of exp(logit - best logit) so far; not finite where a logit was not

    @staticmethod
    def start(rows: int, device: torch.device) -> Best:
        return Best(
            logit=torch.full((rows,), float("-inf"), device=device),
            token=torch.zeros(rows, dtype=torch.int64, device=device),
            total=torch.zeros(rows, device=device),
        )

    def native(self) -> NativePicks:
        return NativePicks(self.logit.data_ptr(), self.token.data_ptr(), self.total.data_ptr())

    def logprob(self) -> torch.Tensor:
        """Log-probability of the best token: its own exponential is 1."""
        return -torch.log(self.total)


def pick_in_torch(tile: torch.Tensor, first_column: int, best: Best) -> None:
    """Carry `best` over `tile` [rows, columns], which is overwritten. The first of equal logits wins."""
    highest, column = tile.max(dim=1)
    best.token.copy_(torch.where(highest > best.logit, column + first_column, best.token))
    peak = torch.maximum(best.logit, highest)
    base = peak.masked_fill(peak == float("-inf"), 0.0)  # relative to nothing, -infinity has no weight
    best.total.mul_(torch.exp(best.logit - base)).add_(tile.sub_(base[:, None]).exp_().sum(dim=1))
    best.logit.copy_(peak)
