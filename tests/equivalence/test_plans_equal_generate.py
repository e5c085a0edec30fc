"""Requests that know where they will part compute each token of their tree once, and give the tokens of `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine.loop import Engine
from engine.request import Completion, Counters, Request
from jobs.junctions import row_plans
from tests.equivalence import tiny
from tests.equivalence.families import FAMILIES, STATE_FAMILIES
from tests.equivalence.subjects import CONFIG, SHARING_MODES, Subject, SubjectOf, assert_expected, complete, requests

TRUNK, BRANCH = 23, 14  # tokens; the window is 12 and a block 4
NEW_TOKENS = 10


def tree() -> list[tuple[int, ...]]:
    """Three branches of one trunk with three leaves each, a copy of a leaf, and a beginning of one."""
    pool = list(tiny.prompts([400])[0])

    def take(count: int) -> tuple[int, ...]:
        taken, pool[:] = pool[:count], pool[count:]
        return tuple(taken)

    trunk = take(TRUNK)
    rows = [trunk + branch + take(length) for branch in (take(BRANCH), take(BRANCH), take(3)) for length in (1, 9, 20)]
    return sorted([*rows, rows[4], rows[5][: TRUNK + 6]])


def wide_tree() -> list[tuple[int, ...]]:
    """Four branches of one trunk with twelve leaves each: more rows than run at once."""
    trunk, *rest = tiny.prompts([TRUNK, *[BRANCH] * 4, *[6] * 48])
    branches, leaves = rest[:4], rest[4:]
    return sorted(trunk + branches[number % 4] + leaf for number, leaf in enumerate(leaves))


def bound(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens that must run at least once, and the last one of each copy."""
    return (
        len({prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)})
        + len(prompts)
        - len(set(prompts))
    )


def planned(prompts: Sequence[tuple[int, ...]], **options: object) -> list[Request]:
    lengths = np.array([len(prompt) for prompt in prompts])
    plans = row_plans(np.concatenate([np.array(prompt) for prompt in prompts]), np.cumsum(lengths) - lengths, lengths)
    return [
        replace(request, junctions=plan.junctions, planned_tokens=plan.planned_tokens)
        for request, plan in zip(requests(prompts, max_tokens=NEW_TOKENS, **options), plans, strict=True)
    ]


def total(completions: Sequence[Completion]) -> Counters:
    return sum((completion.counters for completion in completions), Counters())


def run(subject: Subject, wanted: Sequence[Request], **options: Any) -> tuple[Engine, list[Completion]]:
    engine = subject.engine(replace(CONFIG, **{"num_state_slots": 16, **options}))
    engine.start()
    completions = complete(engine, wanted)
    engine.stop()
    return engine, completions


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_each_token_of_the_tree_is_computed_once(family: str, subject: SubjectOf) -> None:
    prompts = tree()
    expected = tiny.generate(subject(family).source, prompts, NEW_TOKENS)

    engine, completions = run(subject(family), planned(prompts))

    assert_expected(expected, completions)
    counters = total(completions)
    assert counters.computed_tokens == bound(prompts)
    assert counters.planned_tokens == counters.cached_tokens
    assert counters.limited_by == ()
    assert all(manager.pool.num_free == manager.pool.capacity for manager in engine._scheduler.cache.managers)


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_next", "lfm3"])
def test_with_a_quarter_of_the_memory_at_most_a_tenth_more_is_computed(family: str, subject: SubjectOf) -> None:
    prompts = wide_tree()
    expected = tiny.generate(subject(family).source, prompts, NEW_TOKENS)
    engine, completions = run(subject(family), planned(prompts), max_sequences=24, num_state_slots=31)
    blocks = max(
        use.peak for group, use in zip(engine.groups, engine.block_use("job"), strict=True) if group.has_blocks
    )
    slots = engine.block_use("job")[-1].peak

    _, with_little = run(
        subject(family),
        planned(prompts),
        max_sequences=24,
        num_blocks=int(blocks / 4) + 1,
        num_state_slots=int(slots / 4) + 1,
    )

    assert total(completions).computed_tokens == bound(prompts)
    counters = total(with_little)
    assert counters.computed_tokens + counters.recomputed_tokens <= 1.1 * bound(prompts)
    assert_expected(expected, with_little)


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@pytest.mark.parametrize("family", ["gemma3", "llama", "qwen3_next", "bamba"])
def test_rows_in_any_order_give_the_same(family: str, order: str, subject: SubjectOf) -> None:
    prompts = tree()
    prompts = prompts[::-1] if order == "reversed" else [prompts[i] for i in (5, 0, 9, 3, 10, 7, 1, 8, 2, 6, 4)]
    expected = tiny.generate(subject(family).source, prompts, NEW_TOKENS)

    _, completions = run(subject(family), planned(prompts))

    assert_expected(expected, completions)
    assert total(completions).computed_tokens <= bound(prompts) + 1  # a beginning that comes second runs its last token


@pytest.mark.parametrize("mode", SHARING_MODES)
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_samples_fork_at_the_end_of_their_prompt(family: str, mode: str, subject: SubjectOf) -> None:
    prompts = [answer.prompt for answer in subject(family).expected[:3]]
    expected = tiny.generate(subject(family).source, prompts, NEW_TOKENS)
    wanted = (
        planned(prompts, num_samples=3)
        if mode == "prefix sharing"
        else requests(prompts, max_tokens=NEW_TOKENS, num_samples=3)
    )

    _, completions = run(
        subject(family),
        wanted,
        allow_block_sharing=SHARING_MODES[mode].allow_block_sharing,
        use_prefix_sharing=SHARING_MODES[mode].use_prefix_sharing,
    )

    assert_expected([answer for answer in expected for _ in range(3)], completions)
    forked = sum(len(prompt) for prompt in prompts) * 2 if mode == "no sharing" else 0
    assert total(completions).forked_tokens == forked


@pytest.mark.parametrize("family", sorted(STATE_FAMILIES))
def test_a_place_that_was_lost_for_want_of_slots_is_named(family: str, subject: SubjectOf) -> None:
    prompts = tree()
    expected = tiny.generate(subject(family).source, prompts, NEW_TOKENS)

    _, completions = run(subject(family), planned(prompts), num_state_slots=3, max_sequences=2)

    assert_expected(expected, completions)
    counters = total(completions)
    assert counters.planned_tokens - counters.cached_tokens == sum(tokens for _, tokens in counters.limited_by)
    assert {name for name, _ in counters.limited_by} <= {"evicted", "no room"}
