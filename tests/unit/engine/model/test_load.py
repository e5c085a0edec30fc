"""What can be served is found out at load; what cannot is refused there by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from engine.config import EngineConfig
from engine.errors import ConfigError, ModelRefused
from engine.model.load import load_model
from engine.model.native_linear import NativeGate, NativeLinear
from engine.model.packed import OneDnnLinear, PackedLinear
from engine.model.runner import ModelRunner

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
CONFIG = EngineConfig(num_blocks=8, block_size=4)


def saved(config: Any, folder: Path) -> Path:
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def test_groups_follow_the_layers_windows(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention"]
    source = saved(transformers.Gemma3TextConfig(**SMALL, head_dim=16, layer_types=kinds, sliding_window=9), tmp_path)

    loaded = load_model(source, CONFIG)

    assert [(group.kind, group.window, group.layers) for group in loaded.groups] == [
        ("sliding", 9, (0,)),
        ("full", None, (1,)),
    ]
    assert {(group.num_kv_heads, group.key_dim, group.value_dim) for group in loaded.groups} == {(2, 16, 16)}


def test_facts_come_from_the_model_and_may_only_be_narrowed(tmp_path: Path) -> None:
    source = saved(transformers.LlamaConfig(**SMALL, eos_token_id=[3, 5]), tmp_path)

    loaded = load_model(source, EngineConfig(num_blocks=8, max_model_len=100))

    assert loaded.eos_token_ids == {3, 5}
    assert (loaded.max_model_len, loaded.vocab_size) == (100, 64)
    with pytest.raises(ConfigError, match="own limit is 128"):
        load_model(source, EngineConfig(num_blocks=8, max_model_len=129))


def test_cache_bytes_decide_the_number_of_blocks(tmp_path: Path) -> None:
    source = saved(transformers.LlamaConfig(**SMALL), tmp_path)
    block_bytes = 2 * 4 * 2 * (8 + 8) * 4  # layers x tokens x KV heads x (key + value) x float32

    loaded = load_model(source, EngineConfig(block_size=4, cache_bytes=10 * block_bytes + 1))

    assert loaded.num_blocks == 10
    with pytest.raises(ConfigError, match=f"one block of every layer takes {block_bytes} bytes"):
        load_model(source, EngineConfig(block_size=4, cache_bytes=block_bytes))


def test_without_a_switch_every_linear_layer_is_packed(tmp_path: Path) -> None:
    source = saved(transformers.LlamaConfig(**SMALL), tmp_path)

    packed, plain = load_model(source, CONFIG), load_model(source, EngineConfig(num_blocks=8, packed_weights=False))

    assert not [m for m in packed.model.modules() if type(m) is torch.nn.Linear]
    assert [m for m in plain.model.modules() if type(m) is torch.nn.Linear]


def test_a_switch_chooses_who_multiplies(tmp_path: Path) -> None:
    source = saved(transformers.LlamaConfig(**SMALL), tmp_path)

    native, other = load_model(source, CONFIG), load_model(source, EngineConfig(num_blocks=8, native_linear=False))

    assert {type(m) for m in native.model.modules() if isinstance(m, PackedLinear)} == {NativeLinear, NativeGate}
    assert {type(m) for m in other.model.modules() if isinstance(m, PackedLinear)} == {OneDnnLinear}


def test_the_switch_chooses_the_attention(tmp_path: Path) -> None:
    loaded = load_model(saved(transformers.LlamaConfig(**SMALL), tmp_path), CONFIG)

    assert ModelRunner(loaded, CONFIG).backend.name == "native"
    assert ModelRunner(loaded, EngineConfig(num_blocks=8, native_attention=False)).backend.name == "torch"


def test_two_engines_in_one_process_do_not_meet(tmp_path: Path) -> None:
    first = load_model(saved(transformers.LlamaConfig(**SMALL), tmp_path / "a"), CONFIG)
    second = load_model(saved(transformers.MistralConfig(**SMALL, sliding_window=5), tmp_path / "b"), CONFIG)

    assert first.seat is not second.seat
    assert [group.window for group in first.groups + second.groups] == [None, 5]


HYBRID: dict[str, Any] = SMALL | {"hidden_size": 32, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}


def test_layers_with_a_state_are_one_group_after_the_others(tmp_path: Path) -> None:
    source = saved(transformers.FalconH1Config(**HYBRID, mamba_d_ssm=64, mamba_d_state=4), tmp_path)

    loaded = load_model(source, EngineConfig(num_blocks=8, block_size=4, max_sequences=5))

    assert [(group.index, group.kind, group.layers) for group in loaded.groups] == [
        (0, "full", (0, 1)),
        (1, "linear", (0, 1)),
    ]
    assert loaded.linear_group == loaded.groups[1]
    assert loaded.paged_groups == loaded.groups[:1]
    assert {(key.kind, key.layer): shape.shape for key, shape in loaded.states.items()} == {
        ("conv", 0): (64 + 2 * 4, 4),
        ("conv", 1): (64 + 2 * 4, 4),
        ("recurrent", 0): (8, 8, 4),
        ("recurrent", 1): (8, 8, 4),
    }
    assert loaded.resolve(CONFIG).num_state_slots == 8, "one for each of max_sequences, two to spare, the reserved one"


def test_recurrent_states_stay_in_float32_in_a_half_precision_model(tmp_path: Path) -> None:
    source = saved(transformers.BambaConfig(**HYBRID, mamba_d_state=4, attn_layer_indices=[1]), tmp_path)

    loaded = load_model(source, EngineConfig(num_blocks=8, dtype="bfloat16"))

    assert {key.kind: shape.dtype for key, shape in loaded.states.items()} == {
        "conv": torch.bfloat16,
        "recurrent": torch.float32,
    }


def test_states_take_their_share_of_cache_bytes(tmp_path: Path) -> None:
    source = saved(transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]), tmp_path)
    slot_bytes = 32 * 3 * 4  # channels x kernel x float32
    block_bytes = 4 * 2 * (8 + 8) * 4  # tokens x KV heads x (key + value) x float32
    states = (1 + 4 + 2) * slot_bytes  # slot 0, one for each sequence, and two for checkpoints

    loaded = load_model(source, EngineConfig(block_size=4, max_sequences=4, cache_bytes=states + 9 * block_bytes))

    assert (loaded.num_slots, loaded.num_blocks) == (7, 9)
    with pytest.raises(ConfigError, match=f"the states of the running sequences {states}; give at least"):
        load_model(source, EngineConfig(block_size=4, num_state_slots=7, cache_bytes=states + block_bytes))


def test_states_that_would_take_most_of_the_cache_let_fewer_sequences_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = saved(transformers.Lfm2Config(**SMALL, layer_types=["conv", "full_attention"]), tmp_path)

    loaded = load_model(source, EngineConfig(block_size=4, max_sequences=64, cache_bytes=20 * 32 * 3 * 4))

    assert loaded.num_slots == 10, "half of the cache"
    assert "there is room for 9 of them instead of 80" in caplog.text


def test_weights_that_a_layer_reads_itself_are_not_packed(tmp_path: Path) -> None:
    config = transformers.JambaConfig(**SMALL, attn_layer_period=2, attn_layer_offset=1, num_experts=1, mamba_dt_rank=4)

    loaded = load_model(saved(config, tmp_path), CONFIG)

    plain = {name.rsplit(".", 1)[-1] for name, m in loaded.model.named_modules() if type(m) is torch.nn.Linear}
    assert plain == {"dt_proj"}


REFUSED: dict[str, tuple[Any, str]] = {
    "a state that only its model knows": (
        transformers.MiniMaxConfig(
            **SMALL, head_dim=8, num_local_experts=2, layer_types=["full_attention", "linear_attention"]
        ),
        "layer 1 keeps a state in a way that is not known",
    ),
    "a state on the module itself": (
        transformers.RecurrentGemmaConfig(
            **SMALL, lru_width=32, block_types=("attention", "recurrent"), attention_window_size=8
        ),
        "layer 1 keeps a state in a way that is not known",
    ),
    "a state that looks like attention": (
        transformers.xLSTMConfig(vocab_size=64, hidden_size=32, embedding_dim=32, num_hidden_layers=2, num_heads=2),
        "layer 0 keeps a state in a way that is not known",
    ),
    "a state without a cache": (
        transformers.RwkvConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, context_length=128),
        "RwkvForCausalLM takes no cache",
    ),
    "attention with a state of its own inside": (
        transformers.ZayaConfig(**SMALL, head_dim=8),
        "layer 0 does not say how long its convolution state is",
    ),
    "attention in the model's own code": (
        transformers.GPTJConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=2, rotary_dim=4, n_positions=64),
        "computes attention in its own code",
    ),
    "chunked attention": (
        transformers.Llama4TextConfig(
            **SMALL,
            head_dim=8,
            num_local_experts=2,
            attention_chunk_size=8,
            intermediate_size_mlp=32,
            layer_types=["chunked_attention", "full_attention"],
        ),
        "layer 0 is of type 'chunked_attention'",
    ),
}


@pytest.mark.parametrize(("config", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_served_is_refused_by_name(config: Any, reason: str, tmp_path: Path) -> None:
    source = saved(config, tmp_path)

    with pytest.raises(ModelRefused, match=reason):
        load_model(source, CONFIG)


LONG_ROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 40,
}


def test_rotations_that_follow_the_longest_row_are_refused_where_a_row_can_be_as_long(tmp_path: Path) -> None:
    source = saved(transformers.LlamaConfig(**SMALL, rope_parameters=LONG_ROPE), tmp_path)

    with pytest.raises(ModelRefused, match=r"LlamaRotaryEmbedding \(longrope\) turns .* max_model_len 40 at most"):
        load_model(source, CONFIG)
    assert load_model(source, replace(CONFIG, max_model_len=40)).max_model_len == 40


def test_rotations_that_change_beyond_the_model_s_own_limit_are_served(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}

    assert load_model(saved(transformers.LlamaConfig(**SMALL, rope_parameters=rope), tmp_path), CONFIG)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    transformers.T5Config().save_pretrained(tmp_path)

    with pytest.raises(ModelRefused, match="encoder-decoder"):
        load_model(tmp_path, CONFIG)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="cannot load it"):
        load_model(tmp_path, CONFIG)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    source = saved(transformers.LlamaConfig(**SMALL), tmp_path)
    (source / "model.safetensors").unlink()
    torch.save({}, source / "pytorch_model.bin")

    with pytest.raises(ModelRefused, match="safetensors"):
        load_model(source, CONFIG)


HALF = EngineConfig(num_blocks=8, strict=True, dtype="bfloat16")


def test_strict_mode_refuses_what_it_cannot_keep_to(tmp_path: Path) -> None:
    source = saved(transformers.LlamaConfig(**SMALL), tmp_path)

    with pytest.raises(ConfigError, match="strict is on and packed_weights off"):
        EngineConfig(strict=True, packed_weights=False)
    with pytest.raises(ModelRefused, match=r"only float32 on a CPU with oneDNN is known, not torch\.bfloat16 on cpu"):
        load_model(source, HALF)
    config = EngineConfig(num_blocks=8, strict=True, native_attention=False)
    loaded = load_model(source, config)
    with pytest.raises(ModelRefused, match="needs the C kernel for attention: it is switched off"):
        ModelRunner(loaded, loaded.resolve(config))


@pytest.mark.parametrize(("chunk", "block", "step"), [(8, 4, 8), (8, 6, 24), (32, 16, 32)])
def test_strict_mode_cuts_prompts_at_whole_blocks_and_chunks_of_a_scan(
    chunk: int, block: int, step: int, tmp_path: Path
) -> None:
    mamba = transformers.Mamba2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, head_dim=8, num_heads=8, n_groups=1, chunk_size=chunk
    )
    source, config = saved(mamba, tmp_path), EngineConfig(block_size=block, num_state_slots=4, max_model_len=64)

    strict = load_model(source, replace(config, strict=True))

    assert strict.resolve(config).grid == step
    assert load_model(source, config).resolve(config).grid == 1
    least = step + config.max_sequences
    with pytest.raises(ConfigError, match=f"strict mode cuts .* of {step} tokens.*: give at least {least}"):
        load_model(source, replace(config, strict=True, max_batch_tokens=least - 1))
