"""Sampling equals transformers' processors, in batches where every row asks for something else.

One suite for the C kernel and for plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers.generation import logits_process as theirs

from engine.attention.draw import NativeDraw
from engine.filters import SampleRow, is_plain_greedy, process
from engine.request import GREEDY_BELOW, SamplingParams
from engine.sampler import Sampler

VOCAB = 3000
HISTORY = [5, 9, 9, 40, 7, 7, 7, 2999]
PROMPT_LEN = 3

OPTIONS = {
    "greedy": SamplingParams(),
    "temperature": SamplingParams(temperature=0.7),
    "hot": SamplingParams(temperature=3.0),
    "top_k": SamplingParams(temperature=1.0, top_k=7),
    "top_k of one": SamplingParams(temperature=1.0, top_k=1),
    "top_k beyond the vocabulary": SamplingParams(temperature=1.0, top_k=10 * VOCAB),
    "top_p": SamplingParams(temperature=1.0, top_p=0.8),
    "small top_p": SamplingParams(temperature=1.0, top_p=0.01),
    "top_p that needs the whole row": SamplingParams(temperature=9.0, top_p=0.97),
    "min_p": SamplingParams(temperature=1.0, min_p=0.05),
    "repetition": SamplingParams(temperature=1.0, repetition_penalty=1.3),
    "reward": SamplingParams(temperature=1.0, repetition_penalty=0.8),
    "greedy with repetition": SamplingParams(repetition_penalty=1.5),
    "frequency": SamplingParams(temperature=1.0, frequency_penalty=0.4),
    "presence": SamplingParams(temperature=1.0, presence_penalty=-0.6),
    "all filters": SamplingParams(temperature=1.4, top_k=40, top_p=0.95, min_p=0.01),
    "everything": SamplingParams(
        temperature=0.6,
        top_k=60,
        top_p=0.9,
        min_p=0.02,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        presence_penalty=0.5,
    ),
}


def row(sampling: SamplingParams, history: list[int] = HISTORY, sample_index: int = 0) -> SampleRow:
    return SampleRow(sampling, sample_index, history, PROMPT_LEN)


def random_logits(rows: int, vocab: int = VOCAB, seed: int = 4) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def processed_by_transformers(logits: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """One row through transformers' processors, in the order of `generate`; OpenAI's penalties by their formula."""
    ids, scores = torch.tensor([HISTORY]), logits.clone()
    if sampling.repetition_penalty != 1:
        scores = theirs.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, scores)
    counts = torch.bincount(torch.tensor(HISTORY[PROMPT_LEN:]), minlength=logits.shape[1])
    scores = scores - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
    if sampling.temperature == 0:
        return scores
    if sampling.temperature != 1:
        scores = theirs.TemperatureLogitsWarper(sampling.temperature)(ids, scores)
    if sampling.top_k:
        scores = theirs.TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = theirs.TopPLogitsWarper(sampling.top_p)(ids, scores)
    if sampling.min_p:
        scores = theirs.MinPLogitsWarper(sampling.min_p)(ids, scores)
    return scores


def test_every_option_equals_transformers_in_one_mixed_batch() -> None:
    logits = random_logits(len(OPTIONS))
    expected = [processed_by_transformers(logits[i : i + 1], each) for i, each in enumerate(OPTIONS.values())]

    process(logits, [row(sampling) for sampling in OPTIONS.values()])

    for name, got, want in zip(OPTIONS, logits, expected, strict=True):
        assert torch.equal(got.isinf(), want[0].isinf()), f"{name}: other tokens are filtered out"
        torch.testing.assert_close(got, want[0], rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


Sample = Callable[[torch.Tensor, list[SampleRow]], tuple[list[int | None], list[float]]]


@pytest.fixture(params=["native", "torch"])
def sample(request: pytest.FixtureRequest) -> Sample:
    native = NativeDraw() if request.param == "native" else None

    def run(logits: torch.Tensor, rows: list[SampleRow]) -> tuple[list[int | None], list[float]]:
        sampler = Sampler(logits.shape[1], torch.device("cpu"), native)
        return sampler.sample(rows, lambda part, out: out.copy_(logits[part]))

    return run


@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_has_the_bits_in_company_that_it_has_alone(threads: int, sample: Sample) -> None:
    """In a vocabulary so large that several threads add up a single row."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    logits = random_logits(len(OPTIONS), vocab=50_001)
    rows = [row(sampling) for sampling in OPTIONS.values()]

    tokens, logprobs = sample(logits, rows)

    alone = [sample(logits[i : i + 1], [each]) for i, each in enumerate(rows)]
    torch.set_num_threads(before)
    assert tokens == [token for (token,), _ in alone]
    assert logprobs == [logprob for _, (logprob,) in alone]


def test_greedy_rows_beside_drawn_ones_take_the_argmax(sample: Sample) -> None:
    logits = random_logits(4)
    rows = [row(OPTIONS[name]) for name in ("greedy", "hot", "greedy with repetition", "top_p")]

    tokens, _ = sample(logits, rows)

    assert tokens[0] == int(logits[0].argmax())
    assert tokens[2] == int(processed_by_transformers(logits[2:3], OPTIONS["greedy with repetition"]).argmax())


def test_the_log_probability_is_that_of_the_raw_distribution(sample: Sample) -> None:
    logits = random_logits(len(OPTIONS))

    tokens, logprobs = sample(logits, [row(sampling) for sampling in OPTIONS.values()])

    raw = torch.log_softmax(logits.double(), dim=1)
    expected = [float(raw[i, token]) for i, token in enumerate(tokens)]
    assert logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["temperature", "top_k", "all filters"])
def test_a_hundred_thousand_draws_follow_the_distribution(name: str, sample: Sample) -> None:
    draws, vocab = 100_000, 50
    logits = random_logits(1, vocab) / 3
    sampling = OPTIONS[name]
    rows = [SampleRow(sampling, i, [], 0) for i in range(draws)]

    tokens, _ = sample(logits.expand(draws, -1), rows)

    scores = logits.double().clone()
    process(scores, rows[:1])
    weights = torch.softmax(scores[0], dim=0).numpy()
    counts = np.bincount(tokens, minlength=vocab)
    assert counts[weights == 0].sum() == 0, "a filtered token was drawn"
    likely = weights > 0
    assert stats.chisquare(counts[likely], weights[likely] * draws).pvalue > 1e-3


def test_a_row_draws_the_same_token_whatever_stands_beside_it(sample: Sample) -> None:
    logits = random_logits(len(OPTIONS))
    rows = [row(sampling, sample_index=3) for sampling in OPTIONS.values()]
    together, _ = sample(logits, rows)

    alone = [sample(logits[i : i + 1], [each])[0][0] for i, each in enumerate(rows)]

    assert together == alone


@pytest.mark.parametrize(("vocab", "count"), [(1 << 19, 11), (60, 700)], ids=["copied at once", "projected at once"])
def test_more_rows_than_are_taken_at_once_are_sampled_like_one(vocab: int, count: int, sample: Sample) -> None:
    logits = random_logits(count, vocab)
    options = [SamplingParams(temperature=1.0, seed=i, presence_penalty=i % 4) for i in range(count)]
    rows = [SampleRow(each, 0, [1, 2], 1) for each in options]

    together, _ = sample(logits, rows)

    for last in (9, count - 1):
        assert together[last] == sample(logits[last : last + 1], rows[last : last + 1])[0][0]


EXTREMES = [
    *[SamplingParams(temperature=value) for value in (5e-324, 1e-40, 9e-6, 2e-5, 1e30, 1e300)],
    *[SamplingParams(temperature=1.0, top_k=value) for value in (VOCAB - 1, VOCAB, 2**31 - 1, 2**62)],
    *[SamplingParams(temperature=1.0, top_p=value) for value in (5e-324, 1e-30, 1 - 1e-16)],
    *[SamplingParams(temperature=1.0, min_p=value) for value in (5e-324, 1e-30, 1.0)],
    *[
        SamplingParams(temperature=temperature, **{name: value})
        for temperature in (0.0, 2e-5, 1.0, 1e300)
        for name, values in {
            "repetition_penalty": (1e-300, 1e-38, 1e-30, 1e30, 1e38, 1e300),
            "presence_penalty": (-1e300, -1e38, -1e30, 1e30, 1e38, 1e300),
            "frequency_penalty": (-1e300, -1e38, -1e30, 1e30, 1e38, 1e300),
        }.items()
        for value in values
    ],
    SamplingParams(temperature=2e-5, top_k=1, top_p=1e-30, min_p=1.0, repetition_penalty=1e30, frequency_penalty=1e30),
    # What the engine refuses does no harm here either.
    *[
        SamplingParams(temperature=1.0, **{name: value})
        for name in ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
        for value in (math.nan, math.inf, -math.inf)
    ],
    *[SamplingParams(temperature=value) for value in (math.nan, math.inf, -math.inf)],
]


def test_no_value_of_an_option_raises_or_changes_another_row(sample: Sample) -> None:
    options = [each for pair in zip(EXTREMES, [*OPTIONS.values()] * len(EXTREMES), strict=False) for each in pair]
    logits = random_logits(len(options))
    alone, _ = sample(logits[1::2], [row(sampling) for sampling in options[1::2]])

    tokens, logprobs = sample(logits, [row(sampling) for sampling in options])

    assert tokens[1::2] == alone
    for sampling, token, logprob in zip(options, tokens, logprobs, strict=True):
        assert token is None or 0 <= token < VOCAB, sampling
        assert math.isfinite(logprob), sampling
    for sampling in options:
        single = sample(logits[:1], [row(sampling)])[0][0]
        assert single is None or 0 <= single < VOCAB, sampling


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=5e-324),
        SamplingParams(temperature=1e-40),
        SamplingParams(temperature=9e-6),
        SamplingParams(temperature=2e-5),  # divided, and still everything on one token
        SamplingParams(temperature=1.0, top_p=1e-30),
        SamplingParams(temperature=1.0, min_p=1.0),
    ],
)
def test_an_option_that_leaves_one_token_gives_the_most_likely(sampling: SamplingParams, sample: Sample) -> None:
    logits = random_logits(5)

    tokens, _ = sample(logits, [row(replace(sampling, seed=seed)) for seed in range(5)])

    assert tokens == logits.argmax(dim=1).tolist()
    assert is_plain_greedy(sampling) == (sampling.temperature < GREEDY_BELOW)


def test_logits_that_a_low_temperature_would_carry_beyond_float32_are_drawn_from(sample: Sample) -> None:
    logits = random_logits(2)
    logits[0, 40], logits[1] = 3e36, -3e36
    logits[1, 41] = -2e36

    tokens, _ = sample(logits, [row(SamplingParams(temperature=1e-3)), row(SamplingParams(temperature=1e-3))])

    assert tokens == [40, 41]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_whose_options_leave_no_finite_maximum_has_no_token(temperature: float, sample: Sample) -> None:
    logits = random_logits(3)
    logits[1, 40] = 5.0
    plain, beyond = SamplingParams(temperature=temperature), SamplingParams(temperature=temperature, seed=1)

    tokens, logprobs = sample(logits, [row(plain), row(replace(beyond, repetition_penalty=1e-300)), row(plain)])

    assert tokens[1] is None
    assert math.isfinite(logprobs[1])
    assert [tokens[0], tokens[2]] == sample(logits[::2], [row(plain), row(plain)])[0]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_row_that_is_not_finite_has_no_log_probability_and_spoils_no_other(poison: float, sample: Sample) -> None:
    logits = random_logits(3)
    rows = [row(OPTIONS["everything"])] * 3
    expected, _ = sample(logits, rows)
    logits[1, 77] = poison

    tokens, logprobs = sample(logits, rows)

    assert not math.isfinite(logprobs[1])
    assert (tokens[0], tokens[2]) == (expected[0], expected[2])
