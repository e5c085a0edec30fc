"""The attention function refuses whatever it would have to ignore."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine.attention.base import LayerTraits
from engine.errors import ModelRefused
from engine.model.hooks import SEAT, AttentionSeat, NotingCache, attention_function


class Recorder:
    """Notes what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, LayerTraits, int | None]] = []

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        traits: LayerTraits,
        window: int | None,
    ) -> torch.Tensor:
        self.calls.append((layer, traits, window))
        return query.transpose(0, 1)


class Attention(nn.Module):
    """A module as transformers has them."""

    layer_idx = 4

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.seat = AttentionSeat(recorder)
        setattr(self, SEAT, self.seat)


def call(module: nn.Module, **keywords: Any) -> tuple[torch.Tensor, None]:
    tensor = torch.zeros(1, 2, 3, 16)
    return attention_function(module, tensor, tensor, tensor, keywords.pop("mask", None), **keywords)


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"position_bias": torch.zeros(1)}, "position_bias"),
        ({"something_new": 1}, "something_new"),
        ({"mask": torch.zeros(1)}, "mask of its own"),
        ({"is_causal": False}, "both directions"),
        ({"dropout": 0.1}, "dropout"),
    ],
)
def test_what_would_be_ignored_is_refused(keywords: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelRefused, match=reason):
        call(Attention(Recorder()), **keywords)


def test_what_is_harmless_passes() -> None:
    recorder = Recorder()

    out, _ = call(Attention(recorder), position_ids=torch.zeros(1), use_cache=False, something_new=None)

    assert out.shape == (1, 3, 2, 16)
    assert recorder.calls == [(4, LayerTraits(scale=0.25), None)]


def test_scale_softcap_sinks_and_window_are_handed_on() -> None:
    recorder, sinks = Recorder(), torch.ones(2)

    call(Attention(recorder), scaling=0.5, softcap=30.0, s_aux=sinks, sliding_window=7)

    assert recorder.calls == [(4, LayerTraits(scale=0.5, softcap=30.0, sinks=sinks), 7)]


def test_the_layer_noted_by_the_cache_counts_once_and_before_the_modules_own() -> None:
    recorder = Recorder()
    module = Attention(recorder)
    cache, tensor = NotingCache(module.seat), torch.zeros(1)

    assert cache.update(tensor, tensor, 9) == (tensor, tensor)
    call(module)
    call(module)

    assert [layer for layer, _, _ in recorder.calls] == [9, 4]
