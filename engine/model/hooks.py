"""How transformers' layers reach us: a registered attention function, and a cache object that stores nothing itself.

The function is stateless and registered once. What it needs hangs on the attention module itself, under `SEAT`:
an `AttentionSeat` owned by one engine, so that two engines live in one process without knowing each other.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache

from engine.attention.base import LayerTraits
from engine.errors import ModelRefused
from engine.model.states import StateHandler, StateKey

# The name must not contain flash, sdpa, flex_attention, "paged|" or a slash: transformers gives each a meaning.
ATTENTION_NAME = "nightmill"
SEAT = "nightmill_seat"

# Keywords that models pass along and that change nothing here: positions are already in query and key, and no
# mask, dropout or return value depends on them.
_HARMLESS = frozenset(
    {
        "position_ids",
        "cache_position",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "training",
    }
)


class Inline(NamedTuple):
    """Addresses of what the kernel needs to attend by itself within a layer, in this step: as in kernel/2_tiles.c."""

    layer: int
    step: int
    slots: int  # [T]: where this step's keys and values belong


class LayerHandler(Protocol):
    """Computes one attention call of one layer. Tensors are [heads, T, dim]; returns [T, num_heads, value_dim]."""

    def inline(self, layer: int, heads: int, traits: LayerTraits) -> Inline | None:
        """None: `attend` is to be called."""
        ...

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        traits: LayerTraits,
        window: int | None,
    ) -> torch.Tensor: ...


class AttentionSeat:
    """What one engine's modules share: who handles their calls, and which layer the cache was asked for last."""

    def __init__(self, handler: LayerHandler, states: StateHandler | None = None) -> None:
        self.handler = handler
        self.states = states
        self._noted: int | None = None

    def begin(self) -> None:
        """A forward pass starts. An earlier one may have failed between its note and its call."""
        self._noted = None

    def note(self, layer: int) -> None:
        self._noted = layer

    def take_layer(self, module: torch.nn.Module) -> int:
        """The layer of this call: the one noted just before (modules may be shared by several layers), else its own."""
        noted, self._noted = self._noted, None
        return int(module.layer_idx) if noted is None else noted  # type: ignore[arg-type]


class NotingCache(DynamicCache):  # type: ignore[misc]
    """Hands keys and values straight on to the attention function, which pages them, and notes whose they are. States
    come from the seat's handler. Names of parameters are transformers' own: models pass some of them by keyword.
    """

    def __init__(self, seat: AttentionSeat) -> None:
        super().__init__()
        self._seat = seat

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._seat.note(layer_idx)
        return key_states, value_states

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    @property
    def _states(self) -> StateHandler:
        assert self._seat.states is not None, "a state was asked for outside a step"
        return self._seat.states

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """[S, channels, kernel]"""
        return self._states.read(StateKey("conv", layer_idx, state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """[S, heads, ...]"""
        return self._states.read(StateKey("recurrent", layer_idx, state_idx))

    def update_conv_state(
        self,
        conv_states: torch.Tensor,
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Keep the last columns of `conv_states` [S, channels, T]; returns them with what the kernel sees before."""
        if conv_kernel_size is None:
            raise ModelRefused(f"layer {layer_idx} does not say how long its convolution state is; it cannot be served")
        key = StateKey("conv", layer_idx, state_idx)
        before = self._states.read(key)
        if before is not None:
            seen = torch.cat([before, conv_states], dim=-1)
        else:
            seen = functional.pad(conv_states, (max(0, conv_kernel_size - conv_states.shape[-1]), 0))
        self._states.write(key, seen[..., -conv_kernel_size:])
        return seen

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> torch.Tensor:
        """Keep `recurrent_states` [S, heads, ...]."""
        self._states.write(StateKey("recurrent", layer_idx, state_idx), recurrent_states)
        return recurrent_states


def attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The registered function. `query` [1, num_heads, T, D], `key` and `value` [1, num_kv_heads, T, D].

    Raises ModelRefused for whatever it would have to ignore.
    """
    name = type(module).__name__
    unknown = sorted(key for key, given in others.items() if key not in _HARMLESS and given is not None)
    if unknown:
        raise ModelRefused(f"{name} asks its attention for {', '.join(unknown)}, which is not supported")
    if attention_mask is not None:
        raise ModelRefused(f"{name} builds an attention mask of its own, which is not supported")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise ModelRefused(f"{name} attends in both directions; only causal models can be served")
    if dropout:
        raise ModelRefused(f"{name} asks for attention dropout; the model is not in evaluation mode")

    seat: AttentionSeat = getattr(module, SEAT)
    traits = LayerTraits(
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        softcap=softcap or None,
        sinks=s_aux if s_aux is not None else sinks,
    )
    with torch._C.DisableTorchFunction():  # what happens there is ours, whatever mode the model runs in
        out = seat.handler.attend(seat.take_layer(module), query[0], key[0], value[0], traits, sliding_window)
    return out.unsqueeze(0), None


@dataclass(frozen=True, slots=True)
class Entrance:
    """The keyword by which a model takes its cache. Models of states alone know no positions."""

    cache_keyword: Literal["past_key_values", "cache_params"]

    @classmethod
    def of(cls, model: Any) -> Entrance:
        parameters = inspect.signature(model.forward).parameters
        if "past_key_values" in parameters:
            return cls("past_key_values")
        if "cache_params" in parameters:
            return cls("cache_params")
        raise ModelRefused(f"{type(model).__name__} takes no cache that could be replaced; it cannot be served")

    def call(self, model: Any, ids: torch.Tensor, positions: torch.Tensor, cache: DynamicCache) -> Any:
        """One forward pass over the packed row; `ids` and `positions` are [1, T]."""
        keywords: dict[str, Any] = {self.cache_keyword: cache}
        if self.cache_keyword == "past_key_values":
            keywords["position_ids"] = positions
        return model(input_ids=ids, use_cache=False, **keywords)


def connect(model: Any, seat: AttentionSeat) -> None:
    """Route the model's attention to `seat`. Raises ModelRefused if transformers does not let us."""
    AttentionInterface.register(ATTENTION_NAME, attention_function)
    config, text_config = model.config, model.config.get_text_config()
    composite = text_config is not config
    model.set_attn_implementation({"text_config": ATTENTION_NAME} if composite else ATTENTION_NAME)
    # A refusal is only a log line, so read the setting back.
    if text_config._attn_implementation != ATTENTION_NAME:
        raise ModelRefused(
            f"{type(model).__name__} computes attention in its own code and offers no way to replace it; "
            "it cannot be served from a paged cache"
        )
    # Only a run shows which modules call the attention function, so every module gets the seat.
    for module in model.modules():
        setattr(module, SEAT, seat)
