"""In strict mode a row has the same bits whoever runs beside it, whatever is shared, and however its prompt is packed.

One family is refused: Gemma 3n multiplies by matrices that it makes for each token. In all others what depends on the
batch is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.config import EngineConfig
from engine.errors import ModelRefused
from engine.loop import Engine
from engine.model.load import load_model
from engine.request import Completion, Request, SamplingParams
from jobs.junctions import row_plans
from tests.equivalence import tiny
from tests.equivalence.families import FAMILIES, PURE_STATE_FAMILIES
from tests.equivalence.subjects import Subject, complete
from tests.equivalence.test_engine_equals_generate import teach_short_answers

REFUSED = "gemma3n"
SERVED = FAMILIES.keys() - {REFUSED}
ALWAYS = {"llama", "gemma3", "qwen3_next", "bamba", "lfm3", "mamba2", "mixtral", "deepseek_v3"} & SERVED
"""One of each kind; the other families come in the long run."""
SHARED = 140  # tokens; more than two cells of the widest grid, 64, and no multiple of a block
LENGTHS = (150, 171, 141, 200)
OTHERS = (1, 17, 64, 90)
NEW_TOKENS = 8
STRICT = EngineConfig(strict=True, block_size=4, max_batch_tokens=512, max_sequences=16, num_blocks=500)
SAMPLINGS = (
    SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True),
    SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True, temperature=1.0, top_p=0.95, seed=3),
)
BUDGETS = (16, 64, 512)
Bits = list[tuple[tuple[int, ...], str]]


@pytest.fixture(scope="module")
def subject(tiny_model: Callable[[str], Path]) -> Callable[[str], Subject]:
    """A family in strict mode, loaded once."""
    known: dict[str, Subject] = {}

    def get(family: str) -> Subject:
        if family not in known:
            source = tiny_model(family)
            known[family] = Subject(source, load_model(source, STRICT), [], [])
        return known[family]

    return get


def each(families: Collection[str]) -> pytest.MarkDecorator:
    """A parameter for each family."""
    marks = {family: () if family in ALWAYS else (pytest.mark.slow,) for family in families}
    return pytest.mark.parametrize("family", [pytest.param(name, marks=marks[name]) for name in sorted(marks)])


def rows(**options: Any) -> list[Request]:
    """Prompts that share a beginning and others, greedy and drawn in turn."""
    prompts = [*tiny.prompts(LENGTHS, SHARED), *tiny.prompts(OTHERS)]
    return [
        Request(request_id=str(i), job="job", prompt=prompt, sampling=replace(SAMPLINGS[i % 2], **options))
        for i, prompt in enumerate(prompts)
    ]


def started(subject: Subject, **options: Any) -> Engine:
    engine = subject.engine(replace(STRICT, **options))
    engine.start()
    return engine


def bits(completions: Sequence[Completion]) -> Bits:
    assert {completion.finish_reason for completion in completions} == {"length"}
    return [(completion.token_ids, completion.cumulative_logprob.hex()) for completion in completions]


def run(subject: Subject, wanted: Sequence[Request], **options: Any) -> list[Completion]:
    engine = started(subject, **options)
    completions = complete(engine, wanted)
    engine.stop()
    return completions


def alone(subject: Subject, wanted: Sequence[Request]) -> Bits:
    """Each row in a batch of its own, with nothing cached."""
    engine = started(subject, allow_block_sharing=False)
    completions = [completion for row in wanted for completion in complete(engine, [row])]
    engine.stop()
    return bits(completions)


@each(SERVED)
def test_neighbours_hits_and_the_size_of_a_step_change_no_bit(family: str, subject: Callable[[str], Subject]) -> None:
    expected = alone(subject(family), rows())

    for budget in (each for each in BUDGETS if each >= subject(family).loaded.grid.step):
        engine = started(subject(family), max_batch_tokens=budget)
        together, again = complete(engine, rows()), complete(engine, rows()[::-1])
        engine.stop()

        assert bits(together) == expected
        assert bits(again) == expected
        hits = [completion.counters.cached_tokens for completion in again]
        assert any(hits) == (family not in PURE_STATE_FAMILIES)  # without blocks, nothing is known unplanned
    for options in ({"allow_block_sharing": False}, {"use_prefix_sharing": False}):
        assert bits(run(subject(family), rows(), **options)) == expected


@each(SERVED)
def test_starting_at_planned_junctions_changes_no_bit(family: str, subject: Callable[[str], Subject]) -> None:
    prompts = sorted([*tiny.prompts(LENGTHS, SHARED), *tiny.prompts((160, 150), 70), *tiny.prompts(LENGTHS, SHARED)])
    wanted = [replace(row, prompt=prompt) for row, prompt in zip(2 * rows(), prompts, strict=False)]
    wanted = [replace(row, request_id=str(i)) for i, row in enumerate(wanted)]
    lengths = np.array([len(prompt) for prompt in prompts])
    plans = row_plans(np.concatenate([np.array(prompt) for prompt in prompts]), np.cumsum(lengths) - lengths, lengths)
    planned = [
        replace(row, junctions=plan.junctions, planned_tokens=plan.planned_tokens)
        for row, plan in zip(wanted, plans, strict=True)
    ]

    completions = run(subject(family), planned, num_state_slots=40)

    assert bits(completions) == alone(subject(family), wanted)
    step = subject(family).loaded.grid.step
    for completion, plan in zip(completions, plans, strict=True):
        counters = completion.counters
        assert counters.cached_tokens == plan.planned_tokens - plan.planned_tokens % step
        assert counters.planned_tokens - counters.cached_tokens == sum(tokens for _, tokens in counters.limited_by)
        assert {name for name, _ in counters.limited_by} <= {"grid"}


@each(SERVED)
def test_samples_have_the_same_bits_forked_and_apart(family: str, subject: Callable[[str], Subject]) -> None:
    wanted = rows(num_samples=3)[:5]

    expected = alone(subject(family), wanted)

    assert len(set(expected)) > len(wanted), "drawn samples must differ"
    assert bits(run(subject(family), wanted)) == expected
    assert bits(run(subject(family), wanted, use_prefix_sharing=False)) == expected


@each(SERVED - {*PURE_STATE_FAMILIES, "mistral"})  # too few blocks
@pytest.mark.parametrize(("sharing", "num_blocks"), [(True, 100), (False, 122)])
def test_what_runs_again_after_a_preemption_has_its_bits(
    family: str, sharing: bool, num_blocks: int, subject: Callable[[str], Subject]
) -> None:
    """Generated tokens run again one by one in the layers with a state, as they did at first."""
    wanted = rows(max_tokens=24)
    expected = alone(subject(family), wanted)
    engine = started(subject(family), num_blocks=num_blocks, max_batch_tokens=128, use_prefix_sharing=sharing)
    teach_short_answers(engine)

    completions = complete(engine, wanted)
    engine.stop()

    assert sum(completion.counters.preemptions for completion in completions) > 0
    assert bits(completions) == expected


def test_a_model_that_multiplies_by_what_it_made_of_the_row_is_refused_by_name(
    tiny_model: Callable[[str], Path],
) -> None:
    with pytest.raises(ModelRefused, match=r"strict mode: Gemma3nText\w+ multiplies by a matrix"):
        load_model(tiny_model(REFUSED), STRICT)
