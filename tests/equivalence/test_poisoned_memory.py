"""What a block or a slot held before never shows: memory that is full of NaN gives the tokens of `generate`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.loop import Engine
from engine.model.runner import ModelRunner
from tests.equivalence.subjects import CONFIG, SubjectOf, assert_expected, complete, requests

NAN = float("nan")


def poison(engine: Engine) -> None:
    """All that the pools can give out: block 0 and slot 0 are never written, and zeros are read there."""
    runner = engine._runner
    assert isinstance(runner, ModelRunner)
    for tensors in (runner._memory.keys, runner._memory.values):
        for tensor in tensors.values():
            tensor[:, CONFIG.block_size :] = NAN
    if runner._slotted is not None:
        for tensor in runner._slotted.memory.tensors.values():
            tensor[1:] = NAN


@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt_oss", "llama", "lfm3", "mamba2", "qwen3_next", "zamba2"])
def test_memory_that_is_full_of_nan_gives_the_tokens_of_generate(family: str, native: bool, subject: SubjectOf) -> None:
    expected = subject(family).expected
    engine = subject(family).engine(replace(CONFIG, native_attention=native))
    poison(engine)
    engine.start()

    completions = complete(engine, requests([answer.prompt for answer in expected]))
    engine.stop()

    assert_expected(expected, completions)
