"""Where keys and values live: one pair of tensors per layer, cut into slots.

    keys[layer]    [num_kv_heads, num_slots, key_dim]      slot = block id * block_size + position in the block
    values[layer]  [num_kv_heads, num_slots, value_dim]

The head comes first, so that a block of one head is contiguous for a kernel, and a gather needs no further copy.
Every group has the same number of blocks. Block 0 is never written: a gather reads zeros there.
"""

from __future__ import annotations

import logging
import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from engine.cache.groups import LayerGroup
from engine.config import EngineConfig
from engine.errors import ConfigError

_CPU_SHARE, _CPU_CAP = 0.25, 4 << 30
_DEVICE_SHARE = 0.80  # of what is free once the weights are in place
_MOST_FOR_SLOTS = 0.5  # of the cache, unless a number of slots was asked for

_log = logging.getLogger(__name__)


def default_cache_bytes(device: torch.device) -> int:
    """A share of the memory that is free now."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free * _DEVICE_SHARE)
    return min(int(psutil.virtual_memory().available * _CPU_SHARE), _CPU_CAP)


@dataclass(frozen=True, slots=True)
class CacheSizes:
    """How much of everything there is. Id 0 of each is included, and never used."""

    num_blocks: int  # per group with blocks
    num_slots: int  # 0 in a model without state layers


def cache_sizes(
    groups: Sequence[LayerGroup], slot_bytes: int, itemsize: int, device: torch.device, config: EngineConfig
) -> CacheSizes:
    """Slots first, for each sequence that may run and for checkpoints, and blocks for the rest of `cache_bytes`."""
    spare = max(2, config.max_sequences // 4) if config.allow_block_sharing else 0
    wanted = config.num_state_slots or config.max_sequences + spare + 1
    if config.num_blocks is not None:
        return CacheSizes(config.num_blocks, wanted if slot_bytes else 0)
    cache_bytes = config.cache_bytes or default_cache_bytes(device)
    if not slot_bytes:
        return CacheSizes(count_blocks(groups, itemsize, cache_bytes), 0)
    num_slots = wanted
    if config.num_state_slots is None:
        num_slots = max(2, min(wanted, int(cache_bytes * _MOST_FOR_SLOTS) // slot_bytes))
    if num_slots < wanted:
        _log.warning(
            "the states of one sequence take %d bytes, so there is room for %d of them instead of %d; "
            "a larger cache_bytes (now %d) lets more sequences run",
            *(slot_bytes, num_slots - 1, wanted - 1, cache_bytes),
        )
    return CacheSizes(count_blocks(groups, itemsize, cache_bytes, num_slots * slot_bytes), num_slots)


def count_blocks(groups: Sequence[LayerGroup], itemsize: int, cache_bytes: int, state_bytes: int = 0) -> int:
    """Blocks per group that `cache_bytes` hold beside the states, block 0 included; 0 if no group has blocks."""
    per_block = sum(group.block_bytes(itemsize) for group in groups)
    least = 2 * per_block + state_bytes
    if cache_bytes < least:
        states = f" and the states of the running sequences {state_bytes}" if state_bytes else ""
        raise ConfigError(
            f"cache_bytes is {cache_bytes}, but one block of every layer takes {per_block} bytes{states}; "
            f"give at least {least}"
        )
    return (cache_bytes - state_bytes) // per_block if per_block else 0


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On CPU the kernel's own zeros, which become memory when they are written to: a pool of gigabytes costs nothing to
    start with."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


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
                self.keys[layer] = _zeros((*shape, group.key_dim), dtype, device)
                self.values[layer] = _zeros((*shape, group.value_dim), dtype, device)

    def copy(self, group: LayerGroup, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy whole blocks [N] in all layers of `group`; every source is read before any target is written."""
        for layer in group.layers:
            # One tensor at a time: what is read is held until it is written.
            for tensor in (self.keys[layer], self.values[layer]):
                blocks = tensor.view(group.num_kv_heads, -1, group.block_size, tensor.shape[2])
                blocks.index_copy_(1, targets, blocks.index_select(1, sources))
