"""The tensor side alone, without scheduler or cache: packed rows over paged memory equal `generate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.model.load import load_model
from engine.model.runner import ModelRunner
from tests.equivalence import tiny
from tests.equivalence.driver import Driver
from tests.equivalence.families import FAMILIES

NEW_TOKENS = 20
LENGTHS = (1, 5, 23, 40)  # the window is 12, so two prompts are longer than it and all outputs cross it


@pytest.fixture(scope="module")
def expected(tiny_model: Callable[[str], Path]) -> Callable[[str], list[tiny.Expected]]:
    known: dict[str, list[tiny.Expected]] = {}

    def get(family: str) -> list[tiny.Expected]:
        if family not in known:
            known[family] = tiny.generate(tiny_model(family), tiny.prompts(LENGTHS), NEW_TOKENS)
        return known[family]

    return get


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_chunk_size_gives_the_tokens_of_generate(
    family: str,
    fast: bool,
    tiny_model: Callable[[str], Path],
    expected: Callable[[str], list[tiny.Expected]],
) -> None:
    config = EngineConfig(block_size=4, num_blocks=128, packed_weights=fast, fused_norms=fast, native_attention=fast)
    loaded = load_model(tiny_model(family), config)
    runner = ModelRunner(loaded, config)
    driver = Driver(runner, loaded.groups)
    assert runner.backend.name == ("native" if fast else "torch")

    for chunk in (1, 7, 64):
        outputs = driver.run([answer.prompt for answer in expected(family)], NEW_TOKENS, chunk)

        for answer, output in zip(expected(family), outputs, strict=True):
            problem = answer.explain_difference(output)
            assert problem is None, f"prompt of {len(answer.prompt)} tokens, chunks of {chunk}: {problem}"
