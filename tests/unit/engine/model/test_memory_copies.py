"""Copied blocks and state slots hold all that their sources held; nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.cache.groups import LayerGroup
from engine.model.memory import KVMemory
from engine.model.states import StateKey, StateMemory, StateShape
from tests.allocations import peak_bytes

CPU = torch.device("cpu")
NUM_BLOCKS = 6


def group(index: int, layers: tuple[int, ...], block_size: int, key_dim: int, value_dim: int) -> LayerGroup:
    return LayerGroup(
        index=index,
        kind="full",
        layers=layers,
        block_size=block_size,
        window=None,
        num_kv_heads=2,
        key_dim=key_dim,
        value_dim=value_dim,
    )


WIDE = group(0, (0, 3), block_size=4, key_dim=16, value_dim=24)
NARROW = group(1, (1,), block_size=3, key_dim=5, value_dim=5)
SHAPES = {
    StateKey("conv", 0, 0): StateShape((7, 3), torch.bfloat16),
    StateKey("recurrent", 0, 0): StateShape((2, 4, 4), torch.float32),
    StateKey("recurrent", 2, 1): StateShape((5,), torch.float32),
}


def blocks(*ids: int) -> torch.Tensor:
    return torch.tensor(ids)


def full_kv() -> KVMemory:
    """Every number is another."""
    memory = KVMemory([WIDE, NARROW], NUM_BLOCKS, torch.float32, CPU)
    for number, tensor in enumerate([*memory.keys.values(), *memory.values.values()]):
        tensor.copy_((torch.arange(tensor.numel()) + 10_000 * number).view_as(tensor))
    return memory


def full_states() -> StateMemory:
    memory = StateMemory(SHAPES, NUM_BLOCKS, CPU)
    for tensor in memory.tensors.values():
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(5)))
    return memory


@pytest.mark.parametrize("copied", [WIDE, NARROW], ids=["wide", "narrow"])
def test_copied_blocks_are_equal_in_keys_and_values_of_all_layers_of_the_group(copied: LayerGroup) -> None:
    memory, before = full_kv(), full_kv()

    memory.copy(copied, blocks(2, 3, 3), blocks(3, 5, 1))

    comes_from = [0, 3, 2, 2, 4, 3]
    for layer in (0, 1, 3):
        owner = WIDE if layer in WIDE.layers else NARROW
        wanted = comes_from if owner is copied else range(NUM_BLOCKS)
        slots = [block * owner.block_size + offset for block in wanted for offset in range(owner.block_size)]
        assert torch.equal(memory.keys[layer], before.keys[layer][:, slots])
        assert torch.equal(memory.values[layer], before.values[layer][:, slots])


def test_copied_slots_are_equal_in_all_states() -> None:
    memory, before = full_states(), full_states()

    memory.copy(blocks(2, 3, 3), blocks(3, 5, 1))

    for key, tensor in memory.tensors.items():
        assert torch.equal(tensor, before.tensors[key][[0, 3, 2, 2, 4, 3]])


def test_copying_blocks_takes_no_more_memory_than_the_copied_ones_of_one_layer(tmp_path: Path) -> None:
    memory = full_kv()
    sources, targets = blocks(1, 2), blocks(3, 4)

    peak = peak_bytes(lambda: memory.copy(WIDE, sources, targets), tmp_path / "trace.json")

    of_one_layer = len(sources) * WIDE.block_bytes(torch.float32.itemsize) // len(WIDE.layers)
    assert 0 < peak <= of_one_layer


def test_copying_slots_takes_no_more_memory_than_the_copied_ones_of_one_state(tmp_path: Path) -> None:
    memory = full_states()
    sources, targets = blocks(1, 2), blocks(3, 4)

    peak = peak_bytes(lambda: memory.copy(sources, targets), tmp_path / "trace.json")

    assert 0 < peak <= len(sources) * max(shape.num_bytes for shape in SHAPES.values())
