"""The whole engine equals `generate`: chunked, batched, with prefixes taken from the cache, preempted and resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.loop import Engine
from engine.model.load import LoadedModel, load_model
from engine.model.runner import ModelRunner
from engine.request import Completion, Request, SamplingParams
from tests.equivalence import tiny
from tests.equivalence.families import ATTENTION_FAMILIES, FAMILIES, PURE_STATE_FAMILIES, STATE_FAMILIES, WINDOW

NEW_TOKENS = 24
SHARED = 29  # more than twice the window of 12, and not a multiple of the block size of 4
LENGTHS = (30, 33, 41, 58, 35, 47)
SHORT = (2, 3, 4, 5, 6, 7)  # shorter than the window: even a sequence of sliding layers alone grows past what is free
TIGHT: dict[str, Any] = {
    "num_blocks": 24,
    "max_sequences": 8,
    "max_batch_tokens": 16,
    "num_state_slots": 9,
}  # the longest row takes 21 blocks
TIMEOUT_S = 60
CONFIG = EngineConfig(block_size=4, max_batch_tokens=24, max_sequences=4, num_blocks=200)


@dataclass(frozen=True, slots=True)
class Subject:
    """One family, loaded once, with the answers to hold it to."""

    loaded: LoadedModel
    expected: list[tiny.Expected]
    short: list[tiny.Expected]

    def engine(self, config: EngineConfig) -> Engine:
        assert config.num_blocks is not None
        slots = config.num_state_slots or self.loaded.num_slots
        loaded = replace(self.loaded, num_blocks=config.num_blocks, num_slots=slots)
        resolved = loaded.resolve(config)
        runner = ModelRunner(loaded, resolved)
        return Engine(runner, loaded.groups, resolved, loaded.eos_token_ids, loaded.max_model_len)


@pytest.fixture(scope="module")
def subject(tiny_model: Callable[[str], Path]) -> Callable[[str], Subject]:
    known: dict[str, Subject] = {}

    def get(family: str) -> Subject:
        if family not in known:
            source = tiny_model(family)
            expected = tiny.generate(source, tiny.prompts(LENGTHS, SHARED), NEW_TOKENS)
            short = tiny.generate(source, tiny.prompts(SHORT), NEW_TOKENS)
            known[family] = Subject(load_model(source, CONFIG), expected, short)
        return known[family]

    return get


def requests(prompts: Sequence[Sequence[int]], **options: object) -> list[Request]:
    sampling = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    return [
        Request(request_id=str(i), job="job", prompt=prompt, sampling=replace(sampling, **options))  # type: ignore[arg-type]
        for i, prompt in enumerate(prompts)
    ]


def complete(engine: Engine, wanted: Sequence[Request]) -> list[Completion]:
    """All completions in the order of the requests."""
    done: list[Completion] = []
    with engine.feed(wanted) as feed:
        while not feed.done:
            arrived = feed.poll(TIMEOUT_S)
            assert arrived or feed.done, "the engine stands still"
            done += arrived
    engine.check_integrity()
    return sorted(done, key=lambda completion: (int(completion.request_id), completion.sample_index))


def assert_expected(expected: Sequence[tiny.Expected], completions: Sequence[Completion]) -> None:
    for answer, completion in zip(expected, completions, strict=True):
        assert completion.finish_reason == "length", completion.error_message
        problem = answer.explain_difference(completion.token_ids)
        assert problem is None, f"row {completion.request_id}: {problem}"


SHARING_MODES = {
    "prefix sharing": CONFIG,
    "block sharing": replace(CONFIG, use_prefix_sharing=False),
    "no sharing": replace(CONFIG, use_prefix_sharing=False, allow_block_sharing=False),
}


@pytest.mark.parametrize("config", SHARING_MODES.values(), ids=SHARING_MODES.keys())
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_sharing_mode_gives_the_tokens_of_generate(
    family: str, config: EngineConfig, subject: Callable[[str], Subject]
) -> None:
    expected = subject(family).expected
    engine = subject(family).engine(config)
    engine.start()

    first = complete(engine, requests([answer.prompt for answer in expected]))
    again = complete(engine, requests([answer.prompt for answer in expected]))
    engine.stop()

    assert_expected(expected, first)
    assert_expected(expected, again)
    cached = [completion.counters.cached_tokens for completion in again]
    resumes = config.use_prefix_sharing and family not in STATE_FAMILIES  # no state is kept at the end of a prefix yet
    assert all(cached) if resumes else not any(cached)


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
def test_preempted_sequences_resume_with_the_tokens_of_generate(
    family: str, mode: str, subject: Callable[[str], Subject]
) -> None:
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
    assert sum(counters.recomputed_tokens for counters in behind) > 0
    resumes = config.use_prefix_sharing and family not in STATE_FAMILIES
    assert (sum(counters.cached_tokens for counters in behind) > 0) == resumes


@pytest.mark.parametrize("family", ["jamba", "lfm3", "mamba2", "qwen3_next"])
def test_sequences_wait_for_a_state_slot_and_take_one_that_was_used(
    family: str, subject: Callable[[str], Subject]
) -> None:
    expected = subject(family).expected
    engine = subject(family).engine(replace(CONFIG, num_state_slots=3))
    engine.start()

    completions = complete(engine, requests([answer.prompt for answer in expected]))
    engine.stop()

    assert_expected(expected, completions)
    assert [completion.counters.groups[-1].allocated for completion in completions] == [1] * len(expected)
    assert engine.block_use("job")[-1].peak == 2


@pytest.mark.parametrize("family", ["gemma3", "llama", "qwen3_next"])
def test_sampled_tokens_do_not_depend_on_the_neighbours(family: str, subject: Callable[[str], Subject]) -> None:
    prompts = [answer.prompt for answer in subject(family).expected]
    options = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 11, "num_samples": 2}
    engine = subject(family).engine(CONFIG)
    engine.start()
    together = complete(engine, requests(prompts, **options))

    alone = [complete(engine, requests([prompt], **options)) for prompt in prompts]
    engine.stop()

    assert [c.token_ids for c in together] == [c.token_ids for pair in alone for c in pair]
    assert len({c.token_ids for c in together}) == len(together), "samples of one prompt must differ"


def test_a_row_with_extreme_options_ends_alone(subject: Callable[[str], Subject]) -> None:
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
