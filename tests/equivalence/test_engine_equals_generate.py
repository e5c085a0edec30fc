"""The whole engine equals `generate`: chunked, batched, with prefixes taken from the cache, preempted and resumed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.loop import Engine
from engine.request import Request, SamplingParams
from tests.equivalence.families import ATTENTION_FAMILIES, FAMILIES, PURE_STATE_FAMILIES, STATE_FAMILIES, WINDOW
from tests.equivalence.subjects import (
    CONFIG,
    LENGTHS,
    NEW_TOKENS,
    SHARING_MODES,
    SubjectOf,
    assert_expected,
    complete,
    requests,
)

TIGHT: dict[str, Any] = {
    "num_blocks": 24,
    "max_sequences": 8,
    "max_batch_tokens": 16,
    "num_state_slots": 9,
}  # the longest row takes 21 blocks


@pytest.mark.parametrize("config", SHARING_MODES.values(), ids=SHARING_MODES.keys())
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_sharing_mode_gives_the_tokens_of_generate(family: str, config: EngineConfig, subject: SubjectOf) -> None:
    expected = subject(family).expected
    engine = subject(family).engine(config)
    engine.start()

    first = complete(engine, requests([answer.prompt for answer in expected]))
    again = complete(engine, requests([answer.prompt for answer in expected]))
    engine.stop()

    assert_expected(expected, first)
    assert_expected(expected, again)
    cached = [completion.counters.cached_tokens for completion in again]
    if not config.use_prefix_sharing or family in PURE_STATE_FAMILIES:  # without blocks, nothing is known unplanned
        assert not any(cached)
    elif family in STATE_FAMILIES:  # a place is kept where a second prompt was seen to part
        assert any(cached)
    else:
        assert all(cached)


def teach_short_answers(engine: Engine) -> None:
    """Many rows that end at once make the scheduler expect short answers, so that it admits more than will fit."""
    sampling = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    rows = [
        Request(request_id=str(i), job="short", prompt=(5,), sampling=sampling, make_stop=lambda: lambda _token: True)
        for i in range(60)
    ]
    assert {completion.finish_reason for completion in complete(engine, rows)} == {"stop"}


# Models with a state resume from nothing, whatever is shared; without blocks nothing runs out.
PREEMPTED = [
    *((family, mode) for family in sorted(ATTENTION_FAMILIES) for mode in SHARING_MODES),
    *((family, next(iter(SHARING_MODES))) for family in sorted(STATE_FAMILIES.keys() - PURE_STATE_FAMILIES)),
]


@pytest.mark.parametrize(("family", "mode"), PREEMPTED)
def test_preempted_sequences_resume_with_the_tokens_of_generate(family: str, mode: str, subject: SubjectOf) -> None:
    """The short prompts come first: they grow in every group, at the cost of the younger, longer ones behind them."""
    config = SHARING_MODES[mode]
    short, long = subject(family).short, subject(family).expected
    assert min(LENGTHS) > 2 * WINDOW
    engine = subject(family).engine(replace(config, **TIGHT))
    engine.start()
    teach_short_answers(engine)

    completions = complete(engine, requests([answer.prompt for answer in (*short, *long)]))
    engine.stop()

    assert_expected([*short, *long], completions)
    behind = [completion.counters for completion in completions[len(short) :]]
    assert sum(counters.preemptions for counters in behind) > 0
    if not config.use_prefix_sharing:
        assert sum(counters.recomputed_tokens for counters in behind) > 0
        assert sum(counters.cached_tokens for counters in behind) == 0
    elif family in ATTENTION_FAMILIES:
        assert sum(counters.cached_tokens for counters in behind) > 0


@pytest.mark.parametrize("family", ["jamba", "lfm3", "mamba2", "qwen3_next"])
def test_sequences_wait_for_a_state_slot_and_take_one_that_was_used(family: str, subject: SubjectOf) -> None:
    expected = subject(family).expected
    engine = subject(family).engine(replace(CONFIG, num_state_slots=3))
    engine.start()

    completions = complete(engine, requests([answer.prompt for answer in expected]))
    engine.stop()

    assert_expected(expected, completions)
    assert engine.block_use("job")[-1].peak == 2


@pytest.mark.parametrize("family", ["gemma3", "llama", "qwen3_next"])
def test_sampled_tokens_do_not_depend_on_the_neighbours(family: str, subject: SubjectOf) -> None:
    prompts = [answer.prompt for answer in subject(family).expected]
    options = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 11, "num_samples": 2}
    engine = subject(family).engine(CONFIG)
    engine.start()
    together = complete(engine, requests(prompts, **options))

    alone = [complete(engine, requests([prompt], **options)) for prompt in prompts]
    engine.stop()

    assert [c.token_ids for c in together] == [c.token_ids for pair in alone for c in pair]
    assert len({c.token_ids for c in together}) == len(together), "samples of one prompt must differ"


def test_a_row_with_extreme_options_ends_alone(subject: SubjectOf) -> None:
    expected = subject("llama").expected
    prompts = [answer.prompt for answer in expected]
    engine = subject("llama").engine(CONFIG)
    engine.start()

    cold = complete(engine, requests(prompts, temperature=1e-40))
    plain, beyond = requests(prompts), requests(prompts, temperature=1.0, repetition_penalty=1e-300)
    mixed = complete(engine, [*plain[:2], beyond[2], *plain[3:]])
    engine.stop()

    assert_expected(expected, cold)
    assert mixed[2].finish_reason == "error"
    assert "repetition_penalty=1e-300" in (mixed[2].error_message or "")
    assert_expected([*expected[:2], *expected[3:]], [*mixed[:2], *mixed[3:]])
