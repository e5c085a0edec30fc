"""Weights of 8 bits: near what they were, and the same when they are rounded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

from engine.attention.pick import Best
from engine.config import EngineConfig
from engine.errors import ConfigError
from engine.model.load import load_model
from engine.model.narrow import narrowed, round_linears
from engine.model.native_linear import NativeLinear, NativeLinears

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def widened(weight: torch.Tensor) -> torch.Tensor:
    numbers, scales = narrowed(weight)
    return numbers * scales[:, None]


def test_no_weight_moves_by_more_than_half_its_scale() -> None:
    weight = torch.randn(20, 30) * torch.logspace(-6, 6, 20)[:, None]
    weight[3] = 0.0

    moved = (widened(weight) - weight).abs()

    assert (moved <= 0.501 * weight.abs().amax(dim=1, keepdim=True) / 127).all()
    assert narrowed(weight)[0].dtype == torch.int8


def test_rounded_weights_stay_when_they_are_rounded_again() -> None:
    once = widened(torch.randn(200, 64))

    assert torch.equal(narrowed(once)[0], narrowed(widened(once))[0])
    torch.testing.assert_close(widened(once), once, rtol=1e-6, atol=0.0)


def test_every_linear_layer_of_a_model_is_rounded_and_nothing_else() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    before = {name: value.clone() for name, value in model.named_parameters()}

    assert round_linears(model) == 2
    changed = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert changed == ["0.weight", "2.weight"]


@pytest.mark.parametrize("outputs", [1, 16, 33, 200])
@pytest.mark.parametrize("inputs", [3, 64, 130])
def test_the_kernel_multiplies_them_as_floats(outputs: int, inputs: int) -> None:
    torch.manual_seed(outputs)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    linear = NativeLinears(narrow=True)(weight, bias)
    for count in (1, 7, 8, 40):
        rows = torch.randn(count, inputs)
        expected = functional.linear(rows, widened(weight), bias)

        torch.testing.assert_close(linear(rows), expected, rtol=1e-5, atol=1e-5 * inputs**0.5)
        best = Best.start(count, rows.device)
        linear.pick(rows, 0, best)
        assert torch.equal(best.token, linear(rows).argmax(dim=1))


def test_gates_as_well() -> None:
    gate, up = (nn.Linear(24, 40).requires_grad_(False) for _ in range(2))
    product, rows = NativeLinears(narrow=True).gate(gate, up, 0), torch.randn(9, 24)
    round_linears(nn.ModuleList([gate, up]))

    torch.testing.assert_close(product(rows), functional.silu(gate(rows)) * up(rows))


def test_a_model_of_8_bits_is_the_rounded_model(tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL))
    model.save_pretrained(tmp_path)

    loaded = load_model(tmp_path, EngineConfig(num_blocks=8, dtype="int8"))

    layers = [module for module in loaded.model.modules() if isinstance(module, NativeLinear)]
    assert len(layers) == 2 * (4 + 2)  # query, key, value, output; gate with up, down
    assert loaded.dtype == torch.float32
    round_linears(model)
    assert torch.equal(loaded.model.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_experts_that_are_no_linear_layers_stay_as_they_are_in_strict_mode_too(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)
    model = transformers.MixtralForCausalLM(config)
    for weight in model.parameters():
        weight.data.normal_(std=0.3)
    model.save_pretrained(tmp_path)

    loaded = load_model(tmp_path, EngineConfig(num_blocks=8, dtype="int8", strict=True, max_batch_tokens=64))

    layers = [module for module in loaded.model.modules() if isinstance(module, NativeLinear)]
    assert len(layers) == 2 * 4


def test_a_scale_that_is_hardly_a_number_keeps_the_weights_in_reach() -> None:
    weight = torch.randn(4, 30) * 1e-37

    assert (widened(weight) - weight).abs().max() <= torch.finfo(torch.float32).tiny


@pytest.mark.parametrize("switch", ["packed_weights", "native_linear"])
def test_without_the_kernel_they_are_refused(switch: str) -> None:
    with pytest.raises(ConfigError, match="dtype is int8, which needs packed_weights and native_linear"):
        EngineConfig(dtype="int8", **{switch: False})
