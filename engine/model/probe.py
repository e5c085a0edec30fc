"""One short forward pass at load that shows what each layer really does, and proves that the hooks changed nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from engine.attention.base import LayerTraits
from engine.attention.reference import attend_reference
from engine.errors import ModelRefused
from engine.model.hooks import AttentionSeat, Entrance, NotingCache
from engine.model.layers import DeclaredLayer, ObservedLayer
from engine.model.states import RowPart, SlotStates, StateHandler, StateKey, StateMemory, StateShape, StateShapes

PROBE_TOKENS = 12
_CUTS = [5, 6, 1]  # a first chunk, one that goes on from a state, and a decode
_TOLERANCE = 1e-3  # of the largest logit, float32


class ProbeHandler:
    """Attends with the reference over the probe alone, and writes down each layer's shapes."""

    def __init__(self, declared: Sequence[DeclaredLayer]) -> None:
        self._declared = declared
        self.observed: dict[int, ObservedLayer] = {}

    def inline(self, layer: int, heads: int, traits: LayerTraits) -> None:
        return None

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        traits: LayerTraits,
        window: int | None,
    ) -> torch.Tensor:
        expected = self._declared[layer] if 0 <= layer < len(self._declared) else None
        if expected is None or expected.reads is None:
            raise ModelRefused(f"layer {layer} computes attention, but the configuration declares none for it")
        if window is not None and window != expected.window:
            raise ModelRefused(
                f"layer {layer} attends over a window of {window} tokens, but its configuration says {expected.window}"
            )
        if layer in self.observed:
            raise ModelRefused(f"layer {layer} computes attention more than once")
        self.observed[layer] = ObservedLayer(query.shape[0], key.shape[0], key.shape[2], value.shape[2])
        return attend_reference(query, key, value, start=0, window=expected.window, traits=traits)


class ProbeStates:
    """Gives the state layers the whole row with nothing before it, and writes down each state's shape."""

    def __init__(self, declared: Sequence[DeclaredLayer], device: torch.device) -> None:
        self._declared = declared
        self.parts = (RowPart(PROBE_TOKENS, True, torch.ones(1, dtype=torch.int64, device=device), None),)
        self.num_tokens = PROBE_TOKENS
        self.observed: dict[StateKey, StateShape] = {}

    def open(self, part: RowPart) -> None: ...

    def read(self, key: StateKey) -> torch.Tensor | None:
        return None

    def write(self, key: StateKey, state: torch.Tensor) -> None:
        layer = self._declared[key.layer] if 0 <= key.layer < len(self._declared) else None
        if layer is None or not layer.has_state:
            raise ModelRefused(f"layer {key.layer} keeps a state, but the configuration declares none for it")
        if key in self.observed:
            raise ModelRefused(f"layer {key.layer} keeps its {key.kind} state {key.number} more than once")
        self.observed[key] = StateShape(tuple(state.shape[1:]), state.dtype)

    def close(self) -> None: ...


def cut_states(shapes: StateShapes, device: torch.device) -> StateHandler:
    """The same row in three parts, one after another, as a served sequence would run: its state is carried on."""
    slot = torch.ones(1, dtype=torch.int64, device=device)
    columns = torch.split(torch.arange(PROBE_TOKENS, device=device), _CUTS)
    states = SlotStates(StateMemory(shapes, 2, device))
    states.begin([RowPart(len(part), n == 0, slot, part) for n, part in enumerate(columns)])
    return states


def probe_ids(vocab_size: int, device: torch.device) -> torch.Tensor:
    """[1, PROBE_TOKENS], spread over the vocabulary."""
    return (torch.arange(PROBE_TOKENS, device=device) * 7919 + 17).remainder(vocab_size).unsqueeze(0)


def own_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The model's logits [PROBE_TOKENS, vocabulary] as transformers computes them, before anything is replaced."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float()


def own_logits_of_decode(model: Any, ids: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """`expected` with the last row as transformers computes it when it decodes: a few models' single steps leave out
    a bound on their time step that longer inputs have. Raises ModelRefused if transformers cannot decode with it."""
    entrance, positions = Entrance.of(model), _positions(ids)
    own = DynamicCache(config=model.config.get_text_config())
    try:
        with torch.inference_mode():
            entrance.call(model, ids[:, :-1], positions[:, :-1], own)
            last: torch.Tensor = entrance.call(model, ids[:, -1:], positions[:, -1:], own).logits[0]
    except Exception as error:  # foreign code: what it cannot do itself, it cannot do here
        raise ModelRefused(f"{type(model).__name__} cannot decode with its own cache: {error}") from error
    return torch.cat([expected[:-1], last.float()])


def _positions(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)


def far_positions(max_model_len: int, device: torch.device) -> torch.Tensor:
    """[1, PROBE_TOKENS], spread over what a sequence may have."""
    return torch.linspace(0, max_model_len - 1, PROBE_TOKENS, device=device).long().unsqueeze(0)


def hooked_logits(
    model: Any, ids: torch.Tensor, seat: AttentionSeat, positions: torch.Tensor | None = None
) -> torch.Tensor:
    """The same through our hooks, on one packed row; at other `positions` [1, PROBE_TOKENS] if there are any."""
    positions = _positions(ids) if positions is None else positions
    with torch.inference_mode():
        logits: torch.Tensor = Entrance.of(model).call(model, ids, positions, NotingCache(seat)).logits[0]
    return logits.float()


def check_mixers(declared: Sequence[DeclaredLayer], mixers: Collection[int], entrance: Entrance) -> None:
    """Raises ModelRefused for a layer whose state no known mixer keeps. In a model that takes a cache of states alone,
    a layer that seems to be attention is something else."""
    states_alone = entrance.cache_keyword == "cache_params"
    for index, layer in enumerate(declared):
        if (layer.has_state and index not in mixers) or (states_alone and layer.reads is not None):
            raise ModelRefused(f"layer {index} keeps a state in a way that is not known; this model cannot be served")


def check_every_layer(
    declared: Sequence[DeclaredLayer], observed: Mapping[int, ObservedLayer], states: StateShapes
) -> None:
    """Raises ModelRefused for a layer that should have reached the attention function, or the cache with its state,
    and did not."""
    with_state = {key.layer for key in states}
    for index, layer in enumerate(declared):
        if layer.reads is not None and index not in observed:
            raise ModelRefused(f"layer {index} never reached the attention function; this model cannot be served")
        if layer.has_state and index not in with_state:
            raise ModelRefused(f"layer {index} never handed its state to the cache; this model cannot be served")


def check_same(dtype: torch.dtype, expected: torch.Tensor, got: torch.Tensor, what: str) -> None:
    """Raises ModelRefused when `got` is not `expected` but for rounding. A model in half precision is not compared: its
    rounding alone may move a mixture of experts from one expert to another."""
    if dtype != torch.float32:
        return
    error = float((expected - got).abs().max())
    if not error <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ModelRefused(f"with {what} the model's logits change by {error:.2g}; it cannot be served faithfully")
