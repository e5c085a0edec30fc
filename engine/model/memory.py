"""Where keys and values live: one pair of tensors per layer, cut into slots.

    keys[layer]    [num_kv_heads, num_slots, key_dim]      slot = block id * block_size + position in the block
    values[layer]  [num_kv_heads, num_slots, value_dim]

The head comes first, so that a block of one head is contiguous for a kernel, and a gather needs no further copy.
Every group has the same number of blocks. Block 0 is never written: a gather reads zeros there.
"""

from __future__ import annotations

from collections.abc import Sequence

import psutil
import torch

from engine.cache.groups import LayerGroup
from engine.errors import ConfigError

_CPU_SHARE, _CPU_CAP = 0.25, 4 << 30
_DEVICE_SHARE = 0.80  # of what is free once the weights are in place


def default_cache_bytes(device: torch.device) -> int:
    """A share of the memory that is free now."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free * _DEVICE_SHARE)
    return min(int(psutil.virtual_memory().available * _CPU_SHARE), _CPU_CAP)


def count_blocks(groups: Sequence[LayerGroup], itemsize: int, cache_bytes: int) -> int:
    """Blocks per group that `cache_bytes` hold, block 0 included."""
    per_block = sum(group.block_bytes(itemsize) for group in groups)
    blocks = cache_bytes // per_block
    if blocks < 2:
        raise ConfigError(
            f"cache_bytes is {cache_bytes}, but one block of every layer takes {per_block} bytes; "
            f"give at least {2 * per_block}"
        )
    return blocks


class KVMemory:
    """Owns the tensors of all layers."""

    def __init__(self, groups: Sequence[LayerGroup], num_blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        for group in groups:
            slots = num_blocks * group.block_size
            for layer in group.layers:
                # Zeros, not empty: an unwritten slot times a weight of zero must stay zero.
                shape = (group.num_kv_heads, slots)
                self.keys[layer] = torch.zeros((*shape, group.key_dim), dtype=dtype, device=device)
                self.values[layer] = torch.zeros((*shape, group.value_dim), dtype=dtype, device=device)

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store `key` and `value` [num_kv_heads, T, dim] at `slots` [T]."""
        self.keys[layer].index_copy_(1, slots, key)
        self.values[layer].index_copy_(1, slots, value)
