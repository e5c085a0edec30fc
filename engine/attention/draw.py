"""Drawing tokens from raw logits by the C kernel: all rows in one call, in a few passes over each."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from engine.attention.compile import load_kernel
from engine.request import SamplingParams

_ROW = np.dtype(
    [
        ("raw", np.uint64),
        ("scores", np.uint64),
        ("number", np.float64),
        ("top_p", np.float64),
        ("total", np.float64),
        ("top_k", np.int64),
        ("token", np.int64),
        ("temperature", np.float32),
        ("log_min_p", np.float32),
        ("floor", np.float32),
        ("greedy", np.int32),
    ]
)  # draw_row of kernel/9_scores.c
_HIGHEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class DrawRow:
    """A row to draw from. `raw` and `scores` are [vocabulary] in float32, and the same where nothing is penalised."""

    raw: torch.Tensor
    scores: torch.Tensor
    sampling: SamplingParams  # its penalties are in the scores
    number: float  # in [0, 1)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What came out, one entry for each row."""

    tokens: NDArray[np.int64]  # -1 where the options leave nothing; of no meaning where the total is not finite
    totals: NDArray[np.float64]  # logarithm of the sum of the exponentials of `raw`
    floors: NDArray[np.float32]  # the lowest score after the temperature that stays


class NativeDraw:
    """Owns the room that the kernel's threads work in: three times the vocabulary each. A row's bits depend on nothing
    but the row. Raises CannotCompile where there is no kernel."""

    def __init__(self) -> None:
        self._kernel = load_kernel()
        self._kernel.nightmill_draw.restype = None
        self._kernel.nightmill_draw_room.restype = ctypes.c_int64
        self._room = np.empty(0)

    def draw(self, rows: Sequence[DrawRow]) -> Drawn:
        """One token of each row. All have the same vocabulary."""
        columns, threads = len(rows[0].raw), torch.get_num_threads()
        size = threads * self._kernel.nightmill_draw_room(ctypes.c_int64(columns))
        if len(self._room) < size:
            self._room = np.empty(size)
        table = np.array([_entry(row, columns) for row in rows], dtype=_ROW)
        self._kernel.nightmill_draw(
            ctypes.c_void_p(table.ctypes.data),
            ctypes.c_int64(len(rows)),
            ctypes.c_int64(columns),
            ctypes.c_void_p(self._room.ctypes.data),
            ctypes.c_int32(threads),
        )
        return Drawn(table["token"], table["total"], table["floor"])


def _entry(row: DrawRow, columns: int) -> tuple[float, ...]:
    """The row as the kernel wants it; an option that is off by the filters' rules has its neutral value."""
    sampling = row.sampling
    return (
        row.raw.data_ptr(),
        row.scores.data_ptr(),
        row.number,
        sampling.top_p if sampling.top_p < 1 else 1.0,
        0.0,
        sampling.top_k if 0 < sampling.top_k < columns else 0,
        0,
        min(sampling.temperature, _HIGHEST),
        math.log(sampling.min_p) if sampling.min_p > 0 else -math.inf,
        0.0,
        sampling.is_greedy,
    )
