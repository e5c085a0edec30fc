"""Layers that are one call of the kernel give the bits of the same layers taken apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

from engine.config import EngineConfig
from engine.errors import ModelRefused
from engine.model import decoder
from engine.model.decoder import FusedLayer
from engine.model.hooks import NotingCache
from engine.model.layer_parts import LayerParts
from engine.model.load import LoadedModel, load_model
from engine.request import Completion
from tests.equivalence import tiny
from tests.equivalence.families import ATTENTION_FAMILIES
from tests.equivalence.subjects import CONFIG, NEW_TOKENS, Subject, assert_expected, complete, requests

FUSED = ("llama", "mistral", "qwen3", "gemma2", "gemma3")
LAYERS = 4
Prompts = list[tuple[int, ...]]
PROMPTS = tiny.prompts((90, 101, 77, 130), 70)  # they share more than one pass of the attention, which is handed on


def fused_layers(loaded: LoadedModel) -> list[Any]:
    found = [vars(module).get("forward") for module in loaded.model.modules()]
    return [each for each in found if isinstance(each, FusedLayer)]


def completions(loaded: LoadedModel, config: EngineConfig, prompts: Prompts = PROMPTS) -> list[Completion]:
    engine = Subject(Path(), loaded, [], []).engine(config)
    engine.start()
    done = complete(engine, requests(prompts))
    engine.stop()
    return done


def answers(
    loaded: LoadedModel, config: EngineConfig, prompts: Prompts = PROMPTS
) -> list[tuple[tuple[int, ...], float]]:
    return [(tuple(each.token_ids), each.cumulative_logprob) for each in completions(loaded, config, prompts)]


@pytest.mark.parametrize("options", [{}, {"strict": True}, {"native_attention": False}], ids=["", "strict", "torch"])
@pytest.mark.parametrize("family", FUSED)
def test_no_bit_changes(family: str, options: dict[str, Any], tiny_model: Callable[[str], Path]) -> None:
    config = replace(CONFIG, **options)
    whole, apart = (load_model(tiny_model(family), replace(config, fused_layers=fused)) for fused in (True, False))

    assert len(fused_layers(whole)) == LAYERS
    assert not fused_layers(apart)
    assert answers(whole, config) == answers(apart, config)


@pytest.mark.parametrize("dtype", ["int8"])
def test_no_bit_changes_with_weights_in_8_bits(dtype: Any, tiny_model: Callable[[str], Path]) -> None:
    config = replace(CONFIG, dtype=dtype)
    whole, apart = (load_model(tiny_model("llama"), replace(config, fused_layers=fused)) for fused in (True, False))

    assert len(fused_layers(whole)) == LAYERS
    assert answers(whole, config) == answers(apart, config)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_no_bit_changes_in_a_step_whose_rows_come_in_passes(family: str, tiny_model: Callable[[str], Path]) -> None:
    """Of 512 rows at most; the first step has 1,230."""
    config = replace(CONFIG, max_batch_tokens=2048, max_sequences=8, num_blocks=400)
    whole, apart = (load_model(tiny_model(family), replace(config, fused_layers=fused)) for fused in (True, False))
    prompts = tiny.prompts([180, 190, 200, 210, 220, 230])

    found = answers(whole, config, prompts)

    assert [len(token_ids) for token_ids, _ in found] == [NEW_TOKENS] * len(prompts)
    assert found == answers(apart, config, prompts)


def test_layers_with_biases_are_fused(tmp_path: Path) -> None:
    source = saved(ATTENTION_FAMILIES["llama"]().to_dict() | {"attention_bias": True, "mlp_bias": True}, tmp_path)
    whole, apart = (load_model(source, replace(CONFIG, fused_layers=fused)) for fused in (True, False))

    assert len(fused_layers(whole)) == LAYERS
    assert answers(whole, CONFIG) == answers(apart, CONFIG)


def test_the_number_of_threads_may_change_after_loading(tiny_model: Callable[[str], Path]) -> None:
    loaded = load_model(tiny_model("gemma3"), CONFIG)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 2)
        more = answers(loaded, CONFIG)
    finally:
        torch.set_num_threads(threads)

    assert more == answers(loaded, CONFIG)


@pytest.mark.parametrize("family", sorted(ATTENTION_FAMILIES.keys() - {*FUSED, "granite"}))
def test_other_layers_stay_as_they_are(family: str, tiny_model: Callable[[str], Path]) -> None:
    assert not fused_layers(load_model(tiny_model(family), CONFIG))


def test_a_layer_of_the_same_parts_that_computes_something_else_stays_as_it_is(tmp_path: Path) -> None:
    plain = ATTENTION_FAMILIES["granite"]().to_dict()
    source = saved(plain | {"residual_multiplier": 0.5}, tmp_path)

    loaded = load_model(source, CONFIG)

    assert not fused_layers(loaded)
    assert_expected(tiny.generate(source, PROMPTS, NEW_TOKENS), completions(loaded, CONFIG))


def test_queries_that_are_scaled_by_position_only_far_out_are_seen(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    rope |= {"original_max_position_embeddings": 16, "llama_4_scaling_beta": 0.5}
    plain = ATTENTION_FAMILIES["llama"]().to_dict()
    source = saved(plain | {"model_type": "ministral3", "rope_parameters": rope}, tmp_path)

    loaded = load_model(source, CONFIG)

    assert not fused_layers(loaded)
    assert_expected(tiny.generate(source, PROMPTS, NEW_TOKENS), completions(loaded, CONFIG))


def test_an_attention_that_hands_on_more_heads_than_it_projects_stays_as_it_is(
    tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference that attends in the trial repeats them itself, so no bit shows it."""
    update = NotingCache.update

    def repeated(cache: NotingCache, key: torch.Tensor, value: torch.Tensor, *args: Any) -> Any:
        return update(cache, key.repeat_interleave(3, dim=1), value.repeat_interleave(3, dim=1), *args)

    monkeypatch.setattr(NotingCache, "update", repeated)

    assert not fused_layers(load_model(tiny_model("llama"), CONFIG))


@pytest.mark.parametrize("error", [KeyError("k"), ModelRefused("asked twice"), AssertionError()])
def test_a_model_that_cannot_run_with_fused_layers_runs_without(
    error: Exception, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr(FusedLayer, "_run", fail)
    loaded = load_model(tiny_model("llama"), CONFIG)
    monkeypatch.undo()

    assert not fused_layers(loaded)
    assert answers(loaded, CONFIG) == answers(load_model(tiny_model("llama"), CONFIG), CONFIG)


@pytest.mark.parametrize(
    ("place", "width"),
    [("q_proj", "out_features"), ("v_proj", "in_features"), ("o_proj", "out_features"), ("k_proj", "out_features")],
)
def test_widths_that_do_not_fit_are_not_handed_to_the_kernel(
    place: str, width: str, tiny_model: Callable[[str], Path]
) -> None:
    loaded = load_model(tiny_model("llama"), replace(CONFIG, fused_layers=False))
    layer = loaded.model.model.layers[0]
    assert LayerParts.of(layer) is not None

    setattr(getattr(layer.self_attn, place), width, 80)

    assert LayerParts.of(layer) is None


def test_a_call_that_is_not_the_common_one_goes_to_the_layer_itself(tiny_model: Callable[[str], Path]) -> None:
    layer = fused_layers(load_model(tiny_model("llama"), CONFIG))[0]
    asked: list[tuple[Any, ...]] = []
    layer._own_forward = lambda *args, **keywords: asked.append((args, keywords))
    row, table = torch.zeros(1, 3, 48), torch.zeros(1, 3, 16)
    cache = NotingCache(layer._seat)
    common = {"position_embeddings": (table, table), "past_key_values": cache, "use_cache": False}

    layer(row, **common, attention_mask=torch.zeros(1))
    layer(row, **common, output_router_logits=True)
    layer(row, None, **common)
    layer(row, past_key_values=cache)
    layer(row, **common | {"past_key_values": DynamicCache()})
    layer(row.double(), **common)
    layer(row.expand(2, 3, 48), **common)
    layer(row, **common | {"position_embeddings": (table[..., :8], table[..., :8])})
    layer(row, **common | {"position_embeddings": (table.transpose(1, 2).contiguous().transpose(1, 2), table)})

    assert len(asked) == 9
    layer._run = lambda *tensors: tensors
    assert layer(row, **common) == (row, table, table)


def test_the_last_layer_goes_its_own_way_where_few_rows_sample(tiny_model: Callable[[str], Path]) -> None:
    loaded = load_model(tiny_model("llama"), CONFIG)
    layer, asked = fused_layers(loaded)[-1], []
    layer._own_forward = lambda *args, **keywords: asked.append(args)
    row, table = torch.zeros(1, 8, 48), torch.zeros(1, 8, 16)
    assert loaded.tap is not None

    loaded.tap.columns = torch.tensor([1, 5])
    layer(row, position_embeddings=(table, table), past_key_values=NotingCache(layer._seat))

    assert len(asked) == 1
    assert layer._is_common(row[:, :3], (table[:, :3], table[:, :3]))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("native", [True, False])
def test_no_number_is_written_beside_the_scratch(
    family: str, native: bool, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[torch.Tensor] = []

    def guarded(count: int) -> torch.Tensor:
        kept.append(torch.full((count + 64,), 7.0))
        return kept[-1][32:-32]

    monkeypatch.setattr(decoder, "scratch", guarded)
    config = replace(CONFIG, native_attention=native)
    answers(load_model(tiny_model(family), config), config)

    assert kept
    assert all(torch.equal(torch.cat([each[:32], each[-32:]]), torch.full((64,), 7.0)) for each in kept)
    assert all(each[-33] != 7.0 for each in kept)  # all of it is used


def saved(config: dict[str, Any], folder: Path) -> Path:
    """A model with random weights."""
    torch.manual_seed(0)
    kinds = (transformers.LlamaConfig, transformers.GraniteConfig, transformers.Ministral3Config)
    kind = next(kind for kind in kinds if kind.model_type == config["model_type"])
    AutoModelForCausalLM.from_config(kind(**config)).save_pretrained(folder)
    return folder
