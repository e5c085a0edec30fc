"""What only rows that sample need runs for these alone, and they come out as before."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from engine.model.elementwise import fuse_elementwise
from engine.model.last_layer import Narrowed, narrow_last_layer
from engine.model.layers import DeclaredLayer
from engine.model.packed import pack_linears
from engine.model.project import HeadTap

HIDDEN = 24
ROWS = torch.randn((1, 10, HIDDEN), generator=torch.Generator().manual_seed(7))
ATTENTION = DeclaredLayer(window=None, reads=1)


class Attention(nn.Module):
    """Each row sees the mean of all keys, whatever it asks."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.o_proj = (nn.Linear(HIDDEN, HIDDEN) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.k_proj(x).mean(dim=1, keepdim=True)
        out: torch.Tensor = self.o_proj(self.q_proj(x) + mean)
        return out


class Layer(nn.Module):
    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.mlp = LlamaMLP(LlamaConfig(hidden_size=HIDDEN, intermediate_size=40, num_attention_heads=2))
        self.mixes = mixes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(x)
        x = x + self.mlp(x)
        return x.cumsum(dim=1) if self.mixes else x


class Model(nn.Module):
    """Two layers and a tap, as the loader leaves a model. `mixes`: rows meet once more after the last layer."""

    def __init__(self, mixes: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList([Layer(False), Layer(mixes)])
        self.tap = HeadTap(nn.Linear(HIDDEN, 5))
        self.requires_grad_(False)
        fuse_elementwise(self)
        pack_linears(self.layers)

    def get_decoder(self) -> SimpleNamespace:
        return SimpleNamespace(layers=self.layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        out: torch.Tensor = self.tap(x)
        return out

    def logits(self) -> torch.Tensor:
        with torch.inference_mode():
            return self(ROWS)[0]

    def at(self, columns: list[int]) -> torch.Tensor:
        self.tap.columns = torch.tensor(columns, dtype=torch.int64)
        return self.logits()

    def narrowed(self, layer: DeclaredLayer = ATTENTION) -> int:
        return narrow_last_layer(self, self.tap, layer, self.logits)


@pytest.fixture
def rows_seen(monkeypatch: pytest.MonkeyPatch) -> Callable[[nn.Module], list[int]]:
    """Notes how many rows a part is given from now on."""

    def watch(part: nn.Module) -> list[int]:
        seen: list[int] = []
        part.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-2]))
        return seen

    return watch


@pytest.mark.parametrize("columns", [[9], [0, 4], [1, 3, 5, 7, 9], [0, 1, 2, 3, 4, 5], []])
def test_rows_that_sample_are_what_they_were(columns: list[int]) -> None:
    model = Model()
    expected = model.logits()

    assert model.narrowed() == 3

    torch.testing.assert_close(model.at(columns), expected[columns], rtol=0.0, atol=1e-5)


def test_the_parts_of_the_last_layer_run_for_the_rows_that_sample_alone(
    rows_seen: Callable[[nn.Module], list[int]],
) -> None:
    model = Model()
    model.narrowed()
    last = model.layers[1]
    parts = (last.mlp.own, last.self_attn.q_proj.own, last.self_attn.o_proj.own)
    seen = [rows_seen(part) for part in (*parts, last.self_attn.k_proj, model.layers[0].mlp)]

    model.at([2, 9])

    assert seen == [[2], [2], [2], [10], [10]]


def test_nothing_is_saved_where_every_second_row_samples(rows_seen: Callable[[nn.Module], list[int]]) -> None:
    model = Model()
    model.narrowed()
    seen = rows_seen(model.layers[1].mlp.own)

    model.at([0, 2, 4, 6, 8])
    model.at([0, 2, 4, 6, 8, 9])

    assert seen == [5, 10]


def test_a_model_in_which_rows_meet_once_more_is_left_alone() -> None:
    model = Model(mixes=True)
    expected = model.logits()

    assert model.narrowed() == 0

    assert not any(isinstance(module, Narrowed) for module in model.modules())
    torch.testing.assert_close(model.at([9]), expected[[9]], rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("layer", [DeclaredLayer(None, 1, has_state=True), DeclaredLayer(None, None, has_state=True)])
def test_queries_of_a_layer_with_a_state_run_for_every_row(layer: DeclaredLayer) -> None:
    model = Model()

    assert model.narrowed(layer) == 1

    assert isinstance(model.layers[1].mlp, Narrowed)
    assert not isinstance(model.layers[1].self_attn.q_proj, Narrowed)


def test_a_model_without_a_list_of_layers_is_left_alone() -> None:
    assert narrow_last_layer(nn.Identity(), HeadTap(nn.Linear(2, 2)), ATTENTION, lambda: torch.zeros(1, 1)) == 0
