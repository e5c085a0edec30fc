"""A prompt that fits is answered, however much was asked for: the real engine on a model with a short context."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.program import Program

pytestmark = pytest.mark.integration

CONTEXT = 32


@pytest.fixture
def llama(tiny_model: Path, tmp_path: Path) -> Path:
    """A real model with random weights for the fake model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
    )
    folder = tmp_path / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    shutil.copy(tiny_model / "tokenizer.json", folder)
    return folder


def test_prompts_that_fit_are_answered_up_to_the_end_of_the_context(program: Program, llama: Path) -> None:
    prompts = [list(range(2, 2 + length)) for length in (2, 20, CONTEXT - 1, CONTEXT + 8)]
    pq.write_table(pa.table({"prompt_token_ids": prompts}), program.folder / "in.parquet")
    real = replace(program, settings={"NIGHTMILL_ENGINE_FACTORY": "jobs.engines:real_engine"})
    options = ["--model", llama, "--max-tokens", "28", "--ignore-eos", "--on-too-long", "truncate-left"]

    done = real.submit("in.parquet", "-o", "OUT", *options)

    assert done.returncode == 0, done.stderr
    rows = pq.read_table(program.folder / "OUT" / "data").to_pylist()
    assert [row["finish_reason"] for row in rows] == ["length"] * 4
    assert [row["completion_tokens"] for row in rows] == [28, 12, 1, 16]
