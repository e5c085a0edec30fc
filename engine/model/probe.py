"""One short forward pass at load that shows what each layer really does, and proves that the hooks changed nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from engine.attention.base import LayerTraits
from engine.attention.reference import attend_reference
from engine.errors import ModelRefused
from engine.model.hooks import AttentionSeat, NotingCache
from engine.model.layers import DeclaredLayer, ObservedLayer

PROBE_TOKENS = 12
_TOLERANCE = 1e-3  # of the largest logit, float32


class ProbeHandler:
    """Attends with the reference over the probe alone, and writes down each layer's shapes."""

    def __init__(self, declared: Sequence[DeclaredLayer]) -> None:
        self._declared = declared
        self.observed: dict[int, ObservedLayer] = {}

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


def probe_ids(vocab_size: int, device: torch.device) -> torch.Tensor:
    """[1, PROBE_TOKENS], spread over the vocabulary."""
    return (torch.arange(PROBE_TOKENS, device=device) * 7919 + 17).remainder(vocab_size).unsqueeze(0)


def own_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The model's logits [PROBE_TOKENS, vocabulary] as transformers computes them, before anything is replaced."""
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float()


def hooked_logits(model: Any, ids: torch.Tensor, seat: AttentionSeat) -> torch.Tensor:
    """The same through our hooks, on one packed row."""
    positions = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
    with torch.inference_mode():
        logits: torch.Tensor = model(
            input_ids=ids, position_ids=positions, past_key_values=NotingCache(seat), use_cache=False
        ).logits[0]
    return logits.float()


def check_every_layer(declared: Sequence[DeclaredLayer], observed: Mapping[int, ObservedLayer]) -> None:
    """Raises ModelRefused for a layer that should have reached the attention function and did not."""
    for index, layer in enumerate(declared):
        if layer.reads is not None and index not in observed:
            raise ModelRefused(f"layer {index} never reached the attention function; this model cannot be served")


def check_same(expected: torch.Tensor, got: torch.Tensor, what: str) -> None:
    """Raises ModelRefused when `got` is not `expected` but for rounding. Half precision is not compared: its rounding
    alone may move a mixture of experts from one expert to another."""
    if expected.dtype != torch.float32:
        return
    error = float((expected - got).abs().max())
    if not error <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise ModelRefused(f"with {what} the model's logits change by {error:.2g}; it cannot be served faithfully")
