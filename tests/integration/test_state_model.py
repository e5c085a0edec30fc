"""A model with state layers runs a job from end to end, and what it held is told apart from blocks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.program import Program
from tests.integration.refusals import GOOD, write

pytestmark = pytest.mark.integration


@pytest.fixture
def convolution_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A real model with random weights whose first layer is a convolution."""
    import torch
    from transformers import Lfm2Config, Lfm2ForCausalLM

    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        layer_types=["conv", "full_attention"],
    )
    folder = tmp_path / "convolution"
    Lfm2ForCausalLM(config).save_pretrained(folder)
    shutil.copy(tiny_model / "tokenizer.json", folder)
    return folder


def test_a_job_of_a_model_with_states_ends_and_counts_its_slots(program: Program, convolution_model: Path) -> None:
    rows = write(program.folder / "in.parquet", GOOD)
    settings = {"NIGHTMILL_ENGINE_FACTORY": "jobs.engines:real_engine", "NIGHTMILL_CACHE_BYTES": str(64 << 20)}
    real = replace(program, settings=settings)

    done = real.submit(rows, "-o", "OUT", "--model", convolution_model, "--max-tokens", "4")

    assert done.returncode == 0, done.stderr
    told = json.loads(real.nightmill("stats", "1", "--json").stdout)
    num_rows = len(GOOD["prompt"])
    assert (told["rows"], told["limited_by"]) == (num_rows, {})
    assert 0 < told["cached_tokens"] == told["planned_cached_tokens"]
    assert told["computed_tokens"] == told["lower_bound_tokens"]
    full, linear = told["groups"]
    assert (full["kind"], full["layers"], full["block_size"]) == ("full", 1, 16)
    assert (linear["kind"], linear["layers"], linear["block_size"], linear["window"]) == ("linear", 1, None, None)
    assert linear["blocks_allocated"] >= num_rows
    assert linear["blocks_copied"] >= 1, "a state was kept where prompts part"
    assert 1 <= linear["blocks_peak"] <= num_rows + linear["blocks_copied"]
