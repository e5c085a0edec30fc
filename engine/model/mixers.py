"""How transformers' state layers reach us: their mixers are run once per part of the packed row, never over all of it.

A mixer carries its state from one token of its input to the next, so over a packed row the state of one sequence would
run on into its neighbour, silently. The row is cut, chunks of equal length are stacked to a batch, and the mixer's own
forward runs over each batch while the cache object lends it the states of those sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.errors import ModelRefused
from engine.model.hooks import AttentionSeat
from engine.model.states import RowPart


@dataclass(frozen=True, slots=True)
class MixerTraits:
    """What the text of a mixer's forward tells."""

    name: str
    steps_singly: bool
    """Only single tokens go on from a recurrent state: the scan over several takes no initial state (Mamba 1)."""

    @classmethod
    def of(cls, kind: type[nn.Module]) -> MixerTraits | None:
        """None for a module that is no mixer: one that never asks the cache for a state."""
        try:
            text = inspect.getsource(kind.forward)
        except (OSError, TypeError):  # no text: built-in, or made at run time
            return None
        if "get_conv_state" not in text:
            return None
        return cls(kind.__name__, steps_singly="get_recurrent_state" in text and "initial_state" not in text)


def find_mixers(model: nn.Module) -> list[tuple[nn.Module, MixerTraits]]:
    known = {kind: MixerTraits.of(kind) for kind in {type(module) for module in model.modules()}}
    return [(module, traits) for module in model.modules() if (traits := known[type(module)]) is not None]


def mixer_layers(model: nn.Module) -> frozenset[int]:
    """The layers that have a mixer."""
    return frozenset(int(module.layer_idx) for module, _ in find_mixers(model))  # type: ignore[arg-type]


def connect_mixers(model: nn.Module, seat: AttentionSeat) -> None:
    """Have every mixer run in parts, with states from `seat`."""
    for module, traits in find_mixers(model):
        module.forward = CutMixer(traits, module.forward, seat)


class CutMixer:
    """Stands where a mixer's forward stood: packed row in, packed row out. Arguments keep their names."""

    def __init__(self, traits: MixerTraits, own_forward: Callable[..., Any], seat: AttentionSeat) -> None:
        self._name = traits.name
        self._steps_singly = traits.steps_singly
        self._own_forward = own_forward
        self._seat = seat

    def __call__(self, *args: Any, **keywords: Any) -> torch.Tensor:
        states = self._seat.states
        assert states is not None, f"{self._name} was called outside a step"
        row = args[0] if args else keywords["hidden_states"]
        if tuple(row.shape[:2]) != (1, states.num_tokens):
            raise ModelRefused(
                f"{self._name} is given a tensor of {tuple(row.shape)} instead of the packed row of "
                f"{states.num_tokens} tokens; its layers cannot be served"
            )
        out: torch.Tensor | None = None
        for part in states.parts:
            states.open(part)
            mixed = self._run(part, args, keywords)
            states.close()
            if part.columns is None:
                return mixed.reshape(1, states.num_tokens, -1)
            if out is None:
                out = mixed.new_empty((1, states.num_tokens, mixed.shape[-1]))
            out[0].index_copy_(0, part.columns, mixed.reshape(-1, mixed.shape[-1]))
        assert out is not None, "a step without tokens"
        return out

    def _run(self, part: RowPart, args: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor:
        """The mixer over one part: [S, length, width]."""
        args = tuple(self._cut(part, value, str(place)) for place, value in enumerate(args))
        keywords = {name: self._cut(part, value, name) for name, value in keywords.items()}
        if part.fresh or part.length == 1 or not self._steps_singly:
            return self._mix(args, keywords)
        steps = [
            self._mix(tuple(_at(at, value) for value in args), {key: _at(at, value) for key, value in keywords.items()})
            for at in range(part.length)
        ]
        return torch.cat(steps, dim=1)

    def _mix(self, args: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor:
        mixed = self._own_forward(*args, **keywords)
        if not isinstance(mixed, torch.Tensor):
            raise ModelRefused(f"{self._name} returns more than its output; its layers cannot be served")
        return mixed

    def _cut(self, part: RowPart, value: Any, name: str) -> Any:
        """The part's columns of whatever has one entry per token of the row; other things as they are."""
        if not isinstance(value, torch.Tensor):
            return value
        assert self._seat.states is not None
        if tuple(value.shape[:2]) != (1, self._seat.states.num_tokens):
            raise ModelRefused(
                f"{self._name} is given {name!r} of {tuple(value.shape)}, which cannot be cut per sequence"
            )
        columns = value[0] if part.columns is None else value[0].index_select(0, part.columns)
        return columns.view(-1, part.length, *columns.shape[1:])


def _at(position: int, value: Any) -> Any:
    """One token of each sequence of whatever was cut."""
    return value[:, position : position + 1] if isinstance(value, torch.Tensor) else value
