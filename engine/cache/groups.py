"""Layer groups: layers with the same cache behaviour and the same block shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GroupKind = Literal["full", "sliding"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers that share one block table per sequence.

    `window` counts the current token: key j is visible to query i iff i - window < j <= i. None for full attention.
    """

    index: int
    kind: GroupKind
    layers: tuple[int, ...]
    block_size: int  # tokens
    window: int | None
    num_kv_heads: int
    key_dim: int
    value_dim: int

    def block_bytes(self, itemsize: int) -> int:
        """Bytes of one block over all layers of the group."""
        per_token = self.num_kv_heads * (self.key_dim + self.value_dim) * itemsize
        return len(self.layers) * self.block_size * per_token

    def first_needed(self, computed: int) -> int:
        """The first block position that the token at position `computed`, or any later one, can see."""
        if self.window is None:
            return 0
        return max(0, computed - self.window + 1) // self.block_size

    def peak_blocks(self, num_tokens: int, max_chunk: int) -> int:
        """The most blocks that a sequence ever holds while it grows to `num_tokens` in chunks of `max_chunk`.

        Sizing the pool and admitting a request must both use this function, or the engine starts and then stalls.
        """
        whole = -(-num_tokens // self.block_size)
        if self.window is None:
            return whole
        chunk = min(max_chunk, num_tokens)
        return min(whole, -(-(self.window - 1 + chunk) // self.block_size) + 1)
