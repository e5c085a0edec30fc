"""Where the states of state layers live: one tensor per state and layer, one row per slot.

    conv        [num_slots, channels, kernel]    the last inputs of a convolution, in the model's dtype
    recurrent   [num_slots, heads, ...]          in the dtype the layer computes it in: float32 also in half models

Slot 0 is never written. A state is named by its kind, its layer and its number within the layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch


class StateKey(NamedTuple):
    """Which state of which layer."""

    kind: Literal["conv", "recurrent"]
    layer: int
    number: int


@dataclass(frozen=True, slots=True)
class StateShape:
    """One sequence's part of a state."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


StateShapes = Mapping[StateKey, StateShape]


def slot_bytes(shapes: StateShapes) -> int:
    """Bytes of one slot over all states of all layers."""
    return sum(shape.num_bytes for shape in shapes.values())


@dataclass(frozen=True, slots=True)
class RowPart:
    """Chunks of one length, which a state layer computes as one batch."""

    length: int  # tokens of each
    fresh: bool  # they start their sequences: nothing comes before
    slots: torch.Tensor  # [S]
    columns: torch.Tensor | None  # [S * length] of the packed row; None: the whole row as it is


class StateHandler(Protocol):
    """Answers the state layers of one step. Between `open` and `close` the states are those of one part, [S, ...]."""

    @property
    def parts(self) -> Sequence[RowPart]: ...

    @property
    def num_tokens(self) -> int: ...

    def open(self, part: RowPart) -> None: ...

    def read(self, key: StateKey) -> torch.Tensor | None:
        """What came before; the layer may write into it, and what it writes counts. None: nothing came before."""
        ...

    def write(self, key: StateKey, state: torch.Tensor) -> None: ...

    def close(self) -> None: ...


class StateMemory:
    """Owns the tensors of all states."""

    def __init__(self, shapes: StateShapes, num_slots: int, device: torch.device) -> None:
        self.tensors = {
            key: torch.zeros((num_slots, *shape.shape), dtype=shape.dtype, device=device)
            for key, shape in shapes.items()
        }

    def copy(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy whole slots [N] in all states; every source is read before any target is written."""
        for tensor in self.tensors.values():
            tensor.index_copy_(0, targets, tensor.index_select(0, sources))


class SlotStates:
    """Lends each part copies of its slots and puts them back: single tokens are written into the copy in place.

    A fresh part is lent nothing, whatever its slots held before: the layers then start as they do for any new prompt.
    """

    def __init__(self, memory: StateMemory) -> None:
        self._memory = memory
        self.parts: Sequence[RowPart] = ()
        self.num_tokens = 0
        self._part: RowPart | None = None
        self._lent: dict[StateKey, torch.Tensor] = {}

    def begin(self, parts: Sequence[RowPart]) -> None:
        """Say how this step's row is cut. A part may go on where an earlier one of the same slot has ended.

        What a step that failed within a layer has left open is forgotten.
        """
        self._part = None
        self._lent.clear()
        self.parts = parts
        self.num_tokens = sum(part.length * len(part.slots) for part in parts)

    def open(self, part: RowPart) -> None:
        assert self._part is None, "a state layer runs within another"
        self._part = part

    def read(self, key: StateKey) -> torch.Tensor | None:
        assert self._part is not None, "a state was asked for outside a state layer"
        if key not in self._lent:
            if self._part.fresh or key not in self._memory.tensors:
                return None
            self._lent[key] = self._memory.tensors[key].index_select(0, self._part.slots)
        return self._lent[key]

    def write(self, key: StateKey, state: torch.Tensor) -> None:
        self._lent[key] = state.to(self._memory.tensors[key].dtype)

    def close(self) -> None:
        assert self._part is not None, "a state layer ended that did not begin"
        for key, state in self._lent.items():
            self._memory.tensors[key].index_copy_(0, self._part.slots, state)
        self._lent.clear()
        self._part = None
