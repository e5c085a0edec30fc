"""What one step allocates: nothing of the size of batch x vocabulary, whatever its rows ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from engine.config import EngineConfig
from engine.model.load import load_model
from engine.model.runner import ModelRunner
from engine.request import SamplingParams
from engine.step import Chunk, Step
from tests.allocations import memory_changes
from tests.equivalence import tiny

SIZES = {49_152: 64, 262_144: 8}  # vocabulary: rows
EVERYTHING = SamplingParams(
    temperature=0.6,
    top_k=60,
    top_p=0.9,
    min_p=0.02,
    repetition_penalty=1.2,
    frequency_penalty=0.3,
    presence_penalty=0.5,
)
OPTIONS = {
    "greedy": SamplingParams(),
    "temperature": SamplingParams(temperature=0.7),
    "everything": EVERYTHING,
    "a short list does not do": replace(EVERYTHING, temperature=50.0, top_k=40_000, top_p=0.99),
}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, bool], ModelRunner]:
    known: dict[tuple[int, bool], ModelRunner] = {}

    def get(vocab_size: int, native: bool) -> ModelRunner:
        if (vocab_size, native) not in known:
            folder: Path = tmp_path_factory.mktemp(str(vocab_size))
            options = tiny.FAMILIES["llama"]().to_dict() | {"vocab_size": vocab_size, "num_hidden_layers": 1}
            config = transformers.LlamaConfig(**options)
            torch.manual_seed(3)
            AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
            engine_config = EngineConfig(block_size=4, num_blocks=SIZES[vocab_size] + 1, native_sampling=native)
            known[vocab_size, native] = ModelRunner(load_model(folder, engine_config), engine_config)
        return known[vocab_size, native]

    return get


def step_of(options: list[SamplingParams]) -> Step:
    """One token of each of as many sequences."""
    chunks = [
        Chunk(
            sequence_id=number,
            token_ids=[5 + number],
            start=0,
            length=1,
            tables=([number + 1],),
            sample_indices=(0,),
            sampling=sampling,
            prompt_len=0,
        )
        for number, sampling in enumerate(options)
    ]
    return Step(tuple(chunks))


@pytest.mark.parametrize("beside", [None, SamplingParams(temperature=1.0)], ids=["alone", "beside others"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("vocab_size", SIZES)
@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
def test_no_step_allocates_batch_times_vocabulary(
    native: bool,
    vocab_size: int,
    name: str,
    beside: SamplingParams | None,
    runner: Callable[[int, bool], ModelRunner],
    tmp_path: Path,
) -> None:
    rows = SIZES[vocab_size]
    options = [OPTIONS[name]] * rows
    if beside is not None:
        options[::8] = [beside] * len(options[::8])  # the option is on in a part of the rows
    step = step_of(options)
    runner(vocab_size, native).run(step)

    sizes = memory_changes(lambda: runner(vocab_size, native).run(step), tmp_path / "trace.json")

    assert sizes, "the profiler saw nothing"
    assert max(sizes) < rows * vocab_size * 4
