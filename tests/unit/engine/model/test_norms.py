from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.bamba.modeling_bamba import BambaRMSNormGated
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from engine.model.norms import fuse_norms


def model_of(norm: nn.Module) -> nn.Module:
    """A model with one norm, whose weight is like none that a model begins with."""
    weight = norm.weight
    assert isinstance(weight, nn.Parameter)
    nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    return nn.Sequential(norm).requires_grad_(False)


@pytest.mark.parametrize("norm", [LlamaRMSNorm(70, 1e-5), Gemma3RMSNorm(64, 1e-6), LlamaRMSNorm(1, 1e-2)])
@pytest.mark.parametrize("shape", [(1, 5), (1, 3, 7), (1,)])
def test_a_fused_norm_equals_the_model_s_own(norm: nn.Module, shape: tuple[int, ...]) -> None:
    model = model_of(norm)
    rows = torch.randn(*shape, norm.weight.shape[0], generator=torch.Generator().manual_seed(2)) * 3
    expected = norm(rows)

    assert fuse_norms(model) == 1

    torch.testing.assert_close(model(rows), expected, rtol=2e-6, atol=2e-6)


def test_heads_before_tokens_are_normed_where_they_lie() -> None:
    norm = Gemma3RMSNorm(32)
    model = model_of(norm)
    rows = torch.randn(1, 6, 4, 32).transpose(1, 2)  # [1, heads, tokens, dim], not contiguous
    expected = norm(rows)
    fuse_norms(model)

    got = model(rows)

    torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)
    assert got.stride() == rows.stride()


def test_a_row_has_the_same_bits_whatever_comes_with_it() -> None:
    model = model_of(LlamaRMSNorm(70))
    fuse_norms(model)
    rows = torch.randn(9, 70)

    assert all(torch.equal(model(rows)[i], model(rows[i : i + 1])[0]) for i in range(9))


@pytest.mark.parametrize("norm", [BambaRMSNormGated(32, 32), nn.LayerNorm(32)])
def test_what_is_no_such_norm_stays(norm: nn.Module) -> None:
    model = nn.Sequential(norm)

    assert fuse_norms(model) == 0
    assert model[0] is norm
