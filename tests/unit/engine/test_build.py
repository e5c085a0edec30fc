"""What an engine leaves behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from torch import nn

from engine import assemble
from engine.build import build_engine
from engine.config import EngineConfig
from engine.model.load import LoadedModel, load_model

MODEL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_an_engine_that_is_gone_makes_room_before_the_next_model_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers: list[weakref.ref[nn.Module]] = []
    left: list[int] = []

    def load(source: Path, config: EngineConfig) -> LoadedModel:
        left.append(sum(layer() is not None for layer in layers))
        loaded = load_model(source, config)
        layers.extend(weakref.ref(layer) for layer in loaded.model.modules())
        return loaded

    transformers.LlamaForCausalLM(transformers.LlamaConfig(**MODEL)).save_pretrained(tmp_path)
    monkeypatch.setattr(assemble, "load_model", load)
    for _ in range(2):
        build_engine(tmp_path, EngineConfig(num_blocks=8))

    assert left == [0, 0]
