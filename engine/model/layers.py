"""From a model's configuration and what a probe saw to layer groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from typing import Any

from transformers.cache_utils import get_layer_types_and_kwargs

from engine.cache.groups import LayerGroup
from engine.config import EngineConfig
from engine.errors import ConfigError, ModelRefused
from engine.grid import Grid

_TYPICAL_SCAN = 64  # tokens; of the delta rule, which has it in no configuration


@dataclass(frozen=True, slots=True)
class DeclaredLayer:
    """What the configuration says of one layer. `reads` is the layer whose keys and values it uses: itself, or for
    a KV-shared layer its producer. None where the layer has no attention. A layer may have attention and a state."""

    window: int | None
    reads: int | None
    has_state: bool = False


@dataclass(frozen=True, slots=True)
class ObservedLayer:
    """What the attention function was given for one layer."""

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int


def declared_layers(config: Any) -> tuple[DeclaredLayer, ...]:
    """Windows come from here and not from the `sliding_window` keyword: some models build a window into their mask
    and never pass the keyword. Raises ModelRefused for a kind of layer that nobody here knows."""
    types, keywords = get_layer_types_and_kwargs(config)
    sharing = getattr(config, "kv_sharing_modes", None) or [None] * len(types)
    own_types = getattr(config, "layer_types", None) or types
    layers: list[DeclaredLayer] = []
    for index, (kind, words) in enumerate(zip(types, keywords, strict=True)):
        if sharing[index] == "reuse":
            producer = _producer(index, own_types, sharing)
            layers.append(DeclaredLayer(layers[producer].window, producer))
        elif kind == "dummy":
            layers.append(DeclaredLayer(None, None))
        elif kind == "full_attention":
            layers.append(DeclaredLayer(None, index))
        elif kind == "sliding_attention":
            layers.append(DeclaredLayer(words["sliding_window"], index))
        elif kind in ("linear_attention", "conv"):
            layers.append(DeclaredLayer(None, None, has_state=True))
        elif kind == "hybrid":
            layers.append(DeclaredLayer(None, index, has_state=True))
        elif kind == "hybrid_sliding":
            layers.append(DeclaredLayer(words["sliding_window"], index, has_state=True))
        else:
            known = "only full and sliding attention and states can be served"
            raise ModelRefused(f"layer {index} is of type {kind!r}; {known}")
    return tuple(layers)


def _producer(index: int, types: Sequence[str], sharing: Sequence[str | None]) -> int:
    """The layer that stores keys and values for the KV-shared layer `index`: the last one of its type that stores."""
    stores = [i for i in range(index) if sharing[i] == "store" and types[i] == types[index]]
    if not stores:
        raise ModelRefused(f"layer {index} shares the keys and values of another layer, but no layer stores them")
    return stores[-1]


def find_grid(config: Any, options: EngineConfig) -> Grid:
    """The grid of a model with states in strict mode: whole blocks, and whole chunks of its scan, so that no cell is
    padded. Any other would do as well for the bits. Raises ConfigError for a step that has no room for a cell beside
    the tokens that others generate: prompts would wait until nobody runs."""
    scan = getattr(config, "mamba_chunk_size", None) or getattr(config, "chunk_size", None) or _TYPICAL_SCAN
    step = lcm(options.block_size, int(scan))
    least = step + options.max_sequences
    if options.max_batch_tokens < least:
        raise ConfigError(
            f"max_batch_tokens is {options.max_batch_tokens}; strict mode cuts prompts of this model at multiples of "
            f"{step} tokens, and {options.max_sequences} sequences may generate beside them: give at least {least}"
        )
    return Grid(step)


def layer_groups(
    declared: Sequence[DeclaredLayer], observed: Mapping[int, ObservedLayer], block_size: int
) -> tuple[LayerGroup, ...]:
    """Layers with the same window and the same shape share a group; groups are in order of their first layer.

    All layers with a state are one group, which comes last.
    """
    members: dict[tuple[int | None, ObservedLayer], list[int]] = {}
    for index, layer in enumerate(declared):
        if layer.reads == index:
            members.setdefault((layer.window, observed[index]), []).append(index)
    groups = [
        LayerGroup(
            index=number,
            kind="full" if window is None else "sliding",
            layers=tuple(layers),
            block_size=block_size,
            window=window,
            num_kv_heads=shape.num_kv_heads,
            key_dim=shape.key_dim,
            value_dim=shape.value_dim,
        )
        for number, ((window, shape), layers) in enumerate(members.items())
    ]
    with_state = tuple(index for index, layer in enumerate(declared) if layer.has_state)
    if with_state:
        groups.append(LayerGroup.of_states(len(groups), with_state))
    return tuple(groups)
