"""Layer groups: layers with the same cache behaviour and the same block shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GroupKind = Literal["full", "sliding", "linear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerGroup:
    """Layers that share one block table per sequence.

    `window` counts the current token: key j is visible to query i iff i - window < j <= i. None for full attention.
    A linear group has no blocks: its layers keep a state per sequence, in a slot whose size the model side knows.
    """

    index: int
    kind: GroupKind
    layers: tuple[int, ...]
    block_size: int  # tokens; 0 in a linear group, whose slots hold any number of them
    window: int | None
    num_kv_heads: int
    key_dim: int
    value_dim: int

    @classmethod
    def of_states(cls, index: int, layers: tuple[int, ...]) -> LayerGroup:
        """The linear group of a model: all its layers with a state."""
        return cls(
            index=index, kind="linear", layers=layers, block_size=0, window=None, num_kv_heads=0, key_dim=0, value_dim=0
        )

    @property
    def has_blocks(self) -> bool:
        return self.kind != "linear"

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
