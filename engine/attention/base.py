"""The contract of attention over paged memory: what one layer group needs to know of one step, and who computes it.

All positions are absolute (0 is the first token of the sequence). Key j is visible to query i iff
`j <= i`, and `i - window < j` where the group has a window.

    packed row   | chunk 0 | chunk 1 |c2|c3| ...      one token per column; a decode is a chunk of one token
    chunk        | start .. start + length |          what is computed now
    tables[c]    | block of position first_block[c] * block_size | next block | ... |   only what some query can see
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from engine.attention.pick import Best

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpans:
    """One step as one layer group sees it. Arrays have one entry per chunk, in the order of the packed row."""

    block_size: int
    window: int | None
    starts: Int64Array  # first position computed now
    lengths: Int64Array  # tokens computed now
    offsets: Int64Array  # first column of the chunk in the packed row
    first_blocks: Int64Array  # absolute index of the block that column 0 of `tables` holds
    tables: Int32Array  # [num_chunks, widest]; NULL_BLOCK fills the right side
    write_slots: Int64Array  # [num_tokens]: slot = block id * block_size + position in the block

    @property
    def num_tokens(self) -> int:
        return len(self.write_slots)

    def first_visible(self, position: int) -> int:
        """First position that the query at `position` sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTraits:
    """What a layer asks of the softmax, as its model passed it."""

    scale: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None  # [num_heads]: one extra logit per head that takes weight and gives nothing


class GroupPlan(Protocol):
    """One step's metadata for one group, built once and used by each of the group's layers."""

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, traits: LayerTraits
    ) -> torch.Tensor:
        """`query` [num_heads, num_tokens, key_dim] (any strides), `keys` and `values` [num_kv_heads, num_slots, dim]
        with this step's tokens already in place; returns [num_tokens, num_heads, value_dim], contiguous."""
        ...


class AttentionBackend(Protocol):
    """One way to compute attention. `name` is what `doctor` shows."""

    name: str

    def plan(self, spans: GroupSpans) -> GroupPlan: ...

    def store(self, pool: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
        """Write `rows` [num_kv_heads, T, dim] (any strides) at `slots` [T] of `pool` [num_kv_heads, num_slots, dim]."""
        ...

    def pick(self, tile: torch.Tensor, first_column: int, best: Best) -> None:
        """Carry `best` over one more tile of logits [rows, columns], which may be overwritten."""
        ...
