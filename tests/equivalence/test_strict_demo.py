"""Strict mode on real shapes: every linear layer of every model here, and both demo models on programming problems."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

from engine.config import EngineConfig
from engine.loop import Engine
from engine.model.load import load_model
from engine.model.project import TILE_COLUMNS
from engine.model.runner import ModelRunner
from engine.model.steady import SteadyLinear
from engine.request import Request, SamplingParams
from tests.equivalence.families import FAMILIES
from tests.equivalence.subjects import complete
from tests.equivalence.test_demo_models import _PREFIX, _PROBLEMS, MODELS
from tests.equivalence.test_strict import bits

DEMO_MODELS = ["gemma3-270m", "smollm2-135m"]
STRICT = EngineConfig(strict=True, cache_bytes=1 << 28)
COUNTS = (*range(1, 66), 79, 96, 97, 127, 128, 129, 191, 192, 193, 255, 256, 257, 383, 384, 385, 511, 512)


def shapes(config: transformers.PretrainedConfig) -> set[tuple[int, int]]:
    """(outputs, inputs) of the linear layers; an output layer is cut into tiles."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    return {(min(linear.out_features, TILE_COLUMNS), linear.in_features) for linear in linears}


def assert_steady(outputs: int, inputs: int) -> None:
    """For as many rows as a step may have: at the beginning, in the middle and at the end of the batch."""
    generator = torch.Generator().manual_seed(outputs + inputs)
    linear = SteadyLinear(torch.randn((outputs, inputs), generator=generator), None)
    rows = torch.randn((max(COUNTS), inputs), generator=generator)
    with torch.inference_mode():
        whole = linear(rows)
        for count in COUNTS:
            for first in {0, (len(rows) - count) // 2, len(rows) - count}:
                part = slice(first, first + count)
                assert torch.equal(linear(rows[part]), whole[part]), f"{outputs} x {inputs}, {count} rows"


def test_linear_layers_of_every_tiny_family_give_a_row_the_same_bits_in_every_batch() -> None:
    found = set[tuple[int, int]]().union(*(shapes(make()) for make in FAMILIES.values()))

    assert len(found) > 20
    for outputs, inputs in sorted(found):
        assert_steady(outputs, inputs)


@pytest.mark.models
@pytest.mark.parametrize("name", DEMO_MODELS)
def test_linear_layers_of_the_demo_models_give_a_row_the_same_bits_in_every_batch(name: str) -> None:
    found = shapes(transformers.AutoConfig.from_pretrained(MODELS / name))

    assert len(found) >= 5
    for outputs, inputs in sorted(found):
        assert_steady(outputs, inputs)


@pytest.mark.models
@pytest.mark.parametrize("name", DEMO_MODELS)
def test_problems_have_the_same_bits_alone_and_together_behind_shared_prefixes(name: str) -> None:
    """Twelve rows behind four beginnings of the few-shot prefix; the window of Gemma 3 is 512 tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODELS / name)
    starts = ("", _PREFIX[: len(_PREFIX) // 8], _PREFIX[: len(_PREFIX) // 2], _PREFIX)
    prompts = [tuple(tokenizer(start + problem).input_ids) for start in starts for problem in _PROBLEMS]
    assert max(len(prompt) for prompt in prompts) > 512
    greedy = SamplingParams(max_tokens=6, ignore_eos=True)
    samplings = (greedy, replace(greedy, temperature=0.8, top_p=0.95, seed=5))
    rows = [
        Request(request_id=str(i), job="job", prompt=prompt, sampling=samplings[i % 2])
        for i, prompt in enumerate(prompts)
    ]
    loaded = load_model(MODELS / name, STRICT)

    def started(config: EngineConfig) -> Engine:
        resolved = loaded.resolve(config)
        engine = Engine(ModelRunner(loaded, resolved), loaded.groups, resolved, frozenset(), loaded.max_model_len)
        engine.start()
        return engine

    engine = started(replace(STRICT, allow_block_sharing=False))
    alone = bits([completion for row in rows for completion in complete(engine, [row])])
    engine.stop()
    engine = started(replace(STRICT, max_batch_tokens=200))
    together, again = complete(engine, rows[::-1]), complete(engine, rows)
    engine.stop()

    assert bits(together) == alone
    assert bits(again) == alone
    assert all(completion.counters.cached_tokens for completion in again)
