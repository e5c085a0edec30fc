"""The models of the benchmark: the demo models, and a hybrid one with random weights that is made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ops.paths import BENCH, MODELS

HYBRID = "qwen3-next-random"
TOKENIZER_OF = "smollm2-135m"  # the hybrid model borrows its tokenizer, so its prompts are the same token ids

SHAPE: dict[str, Any] = {
    # Qwen3-Next made smaller: three layers with a state to one of attention, experts and a shared one in each.
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "shared_expert_intermediate_size": 256,
    "max_position_embeddings": 8192,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def model_dir(name: str) -> Path:
    return BENCH / "models" / name if name == HYBRID else MODELS / name


def provide(name: str) -> Path:
    """The folder of a model, fetched or made if it is not there."""
    from ops.demo.models import DEMO_MODELS, fetch

    if name != HYBRID:
        return fetch(DEMO_MODELS[name], MODELS)
    target = model_dir(name)
    if not (target / "config.json").exists():
        _make_hybrid(target, fetch(DEMO_MODELS[TOKENIZER_OF], MODELS))
    return target


def _make_hybrid(target: Path, tokenizer_from: Path) -> None:
    """It appears by one rename. The seed is fixed, so that every machine gets the same weights."""
    import shutil
    import tempfile

    import torch
    from transformers import AutoModelForCausalLM, Qwen3NextConfig

    target.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        made = Path(scratch) / "model"
        AutoModelForCausalLM.from_config(Qwen3NextConfig(**SHAPE), dtype=torch.float32).save_pretrained(made)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tokenizer_from / name, made / name)
        made.rename(target)
