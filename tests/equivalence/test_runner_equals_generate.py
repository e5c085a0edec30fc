"""The tensor side alone, without scheduler or cache: packed rows over paged memory equal `generate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from engine.cache.groups import LayerGroup
from engine.config import EngineConfig
from engine.model.load import load_model
from engine.model.runner import ModelRunner
from engine.request import SamplingParams
from engine.step import Chunk, Step
from tests.equivalence import tiny
from tests.equivalence.driver import Driver
from tests.equivalence.families import FAMILIES

NEW_TOKENS = 20
LENGTHS = (1, 5, 23, 40)  # the window is 12, so two prompts are longer than it and all outputs cross it
FORKING = ("llama", "gemma2", "qwen3_next", "lfm3", "mamba2")
"""Full layers, sliding beside full, states beside full, all three, and states alone."""
DRAWN = SamplingParams(temperature=1.5, seed=11)


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


@pytest.mark.parametrize("shared", [1, 6, 16, 31], ids="forked at {}".format)  # the blocks hold 4 tokens
@pytest.mark.parametrize("family", FORKING)
def test_forks_go_on_with_the_tokens_of_generate(family: str, shared: int, tiny_model: Callable[[str], Path]) -> None:
    config = EngineConfig(block_size=4, num_blocks=128)
    loaded = load_model(tiny_model(family), config)
    driver = Driver(ModelRunner(loaded, config), loaded.groups)
    answers = tiny.generate(tiny_model(family), tiny.prompts((40, 32, 35), shared), NEW_TOKENS)

    for chunk in (1, 7):
        outputs = driver.run_forked([answer.prompt for answer in answers], shared, NEW_TOKENS, chunk)

        for number, (answer, output) in enumerate(zip(answers, outputs, strict=True)):
            problem = answer.explain_difference(output)
            assert problem is None, f"sequence {number}, chunks of {chunk}: {problem}"


def whole_prompt(
    groups: Sequence[LayerGroup], place: int, prompt: Sequence[int], samples: tuple[int, ...], sampling: SamplingParams
) -> Chunk:
    """A prompt in one chunk, in the blocks of one of several places."""
    room = range(1 + 10 * place, 11 + 10 * place)
    return Chunk(
        sequence_id=place,
        token_ids=prompt,
        start=0,
        length=len(prompt),
        tables=tuple(room if group.has_blocks else [1 + place] for group in groups),
        sample_indices=samples,
        sampling=sampling,
        prompt_len=len(prompt),
    )


@pytest.mark.parametrize("family", FORKING)
def test_samples_of_one_chunk_are_those_of_separate_chunks(family: str, tiny_model: Callable[[str], Path]) -> None:
    config = EngineConfig(block_size=4, num_blocks=128)
    loaded = load_model(tiny_model(family), config)
    runner = ModelRunner(loaded, config)
    asked: list[tuple[tuple[int, ...], SamplingParams]] = [
        ((3, 0, 1, 2), DRAWN),
        ((), DRAWN),
        ((0, 1), SamplingParams()),
        ((5, 4), replace(DRAWN, repetition_penalty=1.3, top_p=0.9)),
    ]
    places = list(enumerate(tiny.prompts((9, 5, 21, 14))))

    together = runner.run(
        Step(tuple(whole_prompt(loaded.groups, *place, *each) for place, each in zip(places, asked, strict=True)))
    )
    apart = [
        runner.run(Step((whole_prompt(loaded.groups, *place, (sample,), sampling),)))[0]
        for place, (samples, sampling) in zip(places, asked, strict=True)
        for sample in samples
    ]

    assert [(each.sequence_id, each.token_id) for each in together] == [
        (each.sequence_id, each.token_id) for each in apart
    ]
    assert [each.logprob for each in together] == pytest.approx([each.logprob for each in apart], abs=1e-4)
    assert len({each.token_id for each in together[:4]}) > 1, "samples that are all alike show nothing"
