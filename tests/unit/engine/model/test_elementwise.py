from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Gemma3TextConfig, LlamaConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP
from transformers.models.glm.modeling_glm import apply_rotary_pos_emb as rotate_pairs
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb as rotate_halves

from engine.attention.compile import load_kernel
from engine.model.elementwise import FusedGate, FusedRotation, fuse_elementwise

SMALL = {"hidden_size": 24, "intermediate_size": 37, "num_attention_heads": 4, "num_key_value_heads": 2}
GATES = [
    LlamaMLP(LlamaConfig(**SMALL)),
    LlamaMLP(LlamaConfig(**SMALL, mlp_bias=True)),
    Gemma3MLP(Gemma3TextConfig(**SMALL)),
]


@pytest.mark.parametrize("own", GATES, ids=["silu", "silu, bias", "gelu by tanh"])
@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_a_fused_gate_equals_the_model_s_own(own: nn.Module, scale: float) -> None:
    model = nn.Sequential(own).requires_grad_(False)
    rows = torch.randn((1, 9, 24), generator=torch.Generator().manual_seed(2)) * scale
    expected = own(rows)

    assert fuse_elementwise(model) == 1

    torch.testing.assert_close(model(rows), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_gate_with_another_activation_stays_the_model_s_own(activation: str) -> None:
    model = nn.Sequential(LlamaMLP(LlamaConfig(**SMALL, hidden_act=activation))).requires_grad_(False)

    fused = fuse_elementwise(model)

    assert fused == 0
    assert type(model[0]) is LlamaMLP


def test_a_number_has_the_same_bits_wherever_it_stands() -> None:
    own = GATES[0].requires_grad_(False)
    gate = FusedGate(load_kernel(), own, 0)
    gate.gate_proj = gate.up_proj = gate.down_proj = nn.Identity()
    row = torch.randn(37, generator=torch.Generator().manual_seed(3)) * 5

    alone, among = gate(row.clone()), gate(torch.cat([torch.ones(5), row, torch.ones(11)]))

    assert torch.equal(alone, among[5:42])


@pytest.mark.parametrize(("heads", "dim"), [(1, 2), (3, 8), (4, 24), (2, 256)])
def test_a_fused_rotation_has_the_bits_of_the_model_s_own(heads: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(4)
    query = torch.randn((1, 5, heads * 2, dim), generator=generator).transpose(1, 2)  # as a projection leaves it
    key = torch.randn((1, heads, 5, dim), generator=generator)
    cos, sin = torch.randn((2, 1, 5, dim), generator=generator)

    got = FusedRotation(load_kernel(), rotate_halves)(query, key, cos, sin)

    for ours, theirs in zip(got, rotate_halves(query, key, cos, sin), strict=True):
        assert torch.equal(ours, theirs)


def test_another_call_than_the_common_one_goes_to_the_model_s_own() -> None:
    called = []

    def own(*args: object, **keywords: object) -> str:
        called.append((args, keywords))
        return "own"

    rotation = FusedRotation(load_kernel(), own)
    query, table = torch.zeros((1, 2, 5, 8)), torch.zeros((1, 5, 8))

    answers = [
        rotation(query, query, table, table, unsqueeze_dim=2),
        rotation(query.expand(2, -1, -1, -1), query, table, table),
        rotation(query.double(), query, table, table),
        rotation(query, query, table[..., :4], table[..., :4]),
    ]

    assert answers == ["own"] * 4
    assert len(called) == 4


def test_only_layers_that_rotate_halves_are_changed() -> None:
    class Pairs(nn.Module):
        def forward(self, query: torch.Tensor) -> object:
            return apply_rotary_pos_emb(query)  # noqa: F821 - given below

    pairs_globals = Pairs.forward.__globals__
    pairs_globals["apply_rotary_pos_emb"] = rotate_pairs
    try:
        model = nn.Sequential(LlamaAttention(LlamaConfig(**SMALL), layer_idx=0), Pairs())

        fused = fuse_elementwise(model)
    finally:
        del pairs_globals["apply_rotary_pos_emb"]

    assert fused == 1
    assert "forward" in vars(model[0])
    assert "forward" not in vars(model[1])
