"""The probe believes nothing: every declared state must show itself, once, and nothing else may."""

from __future__ import annotations

import pytest
import torch

from engine.errors import ModelRefused
from engine.model.hooks import Entrance
from engine.model.layers import DeclaredLayer, ObservedLayer
from engine.model.probe import ProbeStates, check_every_layer, check_mixers, check_same
from engine.model.states import StateKey, StateShape

LAYERS = (DeclaredLayer(None, 0), DeclaredLayer(None, None, has_state=True), DeclaredLayer(None, 2, has_state=True))
ATTENTION = {0: ObservedLayer(4, 2, 8, 8), 2: ObservedLayer(4, 2, 8, 8)}


def test_shapes_are_those_of_one_sequence() -> None:
    states = ProbeStates(LAYERS, torch.device("cpu"))

    states.write(StateKey("recurrent", 1, 0), torch.zeros(1, 4, 8, 8, dtype=torch.float32))

    assert states.observed == {StateKey("recurrent", 1, 0): StateShape((4, 8, 8), torch.float32)}
    assert states.observed[StateKey("recurrent", 1, 0)].num_bytes == 4 * 8 * 8 * 4


def test_a_state_that_nobody_declared_is_refused() -> None:
    states = ProbeStates(LAYERS, torch.device("cpu"))

    for layer in (0, 3, -1):
        with pytest.raises(ModelRefused, match=f"layer {layer} keeps a state, but"):
            states.write(StateKey("conv", layer, 0), torch.zeros(1, 2, 3))


def test_a_state_that_is_kept_twice_is_refused() -> None:
    states = ProbeStates(LAYERS, torch.device("cpu"))
    states.write(StateKey("conv", 1, 0), torch.zeros(1, 2, 3))
    states.write(StateKey("conv", 1, 1), torch.zeros(1, 2, 3))

    with pytest.raises(ModelRefused, match="layer 1 keeps its conv state 1 more than once"):
        states.write(StateKey("conv", 1, 1), torch.zeros(1, 2, 3))


def test_a_layer_whose_state_never_came_is_named() -> None:
    shape = StateShape((2, 3), torch.float32)
    both = {StateKey("conv", 1, 0): shape, StateKey("conv", 2, 0): shape}

    check_every_layer(LAYERS, ATTENTION, both)

    with pytest.raises(ModelRefused, match="layer 2 never handed its state to the cache"):
        check_every_layer(LAYERS, ATTENTION, {StateKey("conv", 1, 0): shape})
    with pytest.raises(ModelRefused, match="layer 2 never reached the attention function"):
        check_every_layer(LAYERS, {0: ATTENTION[0]}, both)


def test_every_state_needs_a_mixer_and_a_cache_of_states_has_no_attention() -> None:
    check_mixers(LAYERS, {1, 2}, Entrance("past_key_values"))
    check_mixers(LAYERS[1:2], {0}, Entrance("cache_params"))

    with pytest.raises(ModelRefused, match="layer 1 keeps a state in a way"):
        check_mixers(LAYERS, {2}, Entrance("past_key_values"))
    with pytest.raises(ModelRefused, match="layer 0 keeps a state in a way"):
        check_mixers(LAYERS, {1, 2}, Entrance("cache_params"))


def test_only_logits_of_a_float32_model_are_compared() -> None:
    expected = torch.tensor([1.0, 5.0])

    check_same(torch.float32, expected, expected + 1e-3, "a change")
    check_same(torch.bfloat16, expected, expected + 1, "a change")

    with pytest.raises(ModelRefused, match="with a change the model's logits change by 1"):
        check_same(torch.float32, expected, expected + 1, "a change")
