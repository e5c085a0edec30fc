"""The C kernel for drawing equals a sort in float64, and plain torch, whatever the logits and options are."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.attention.choose import choose_draw
from engine.attention.draw import Drawn, DrawRow, NativeDraw
from engine.config import EngineConfig
from engine.filters import SampleRow, process
from engine.request import SamplingParams

EPSILON = 1e-6  # so far may rounding move a border, as a share of the mass
SIZES = (1, 7, 16, 50, 1023, 1024, 1025, 3000, 49_152)
KERNEL = NativeDraw()
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Border:
    """The floor, and those that it may be where rounding moves the border of top-p."""

    lowest: float
    highest: float


def scores_of(logits: Floats, temperature: float) -> Floats:
    divisor = np.float32(min(temperature, float(np.finfo(np.float32).max)))
    with np.errstate(all="ignore"):
        peak = logits.max()
        overflows = not np.isfinite(peak / divisor)
        return np.asarray((logits - peak if overflows else logits) / divisor, dtype=np.float32)


def weights_of(scores: Floats, floor: float = -math.inf) -> NDArray[np.float64]:
    with np.errstate(all="ignore"):
        weights = np.exp(scores.astype(np.float64) - float(scores.max()))
    return np.where(scores >= floor, weights, 0.0)


def border_of(scores: Floats, sampling: SamplingParams) -> Border:
    """Floors by sorting the whole row."""
    ordered = np.sort(scores)[::-1]
    floor = -math.inf
    if 0 < sampling.top_k < len(scores):
        floor = float(ordered[sampling.top_k - 1])
    lowest = highest = floor
    if sampling.top_p < 1:
        mass = np.cumsum(np.sort(weights_of(scores, floor))[::-1])
        reached = [np.searchsorted(mass / mass[-1], sampling.top_p + change) for change in (EPSILON, -EPSILON)]
        lowest, highest = (max(floor, float(ordered[at])) if at < len(scores) else floor for at in reached)
    if sampling.min_p > 0:
        least = float(scores.max() + np.float32(math.log(sampling.min_p)))
        lowest, highest = max(lowest, least), max(highest, least)
    return Border(lowest, highest)


def logits_of(size: int, seed: int, kind: str) -> Floats:
    generator = np.random.default_rng(seed)
    logits = generator.standard_normal(size) * 3
    match kind:
        case "ties":
            logits = generator.integers(-3, 4, size).astype(np.float64)
        case "equal":
            logits = np.full(size, logits[0])
        case "hidden":
            logits[generator.random(size) < 0.7] = -math.inf
            logits[seed % size] = 1.0
        case "far":
            logits *= 10.0 ** generator.integers(-30, 37, size)
        case "flat":
            logits *= 1e-6
        case "one above":
            logits = np.full(size, -17.0)
            logits[seed % size] = 0.0
    return logits.astype(np.float32)


KINDS = ("normal", "ties", "equal", "hidden", "far", "flat", "one above")
OPTIONS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([1.0, 0.7]) | st.floats(2e-5, 1e3) | st.sampled_from([2e-5, 1e30, 1e300]),
    top_k=st.sampled_from([0, 1, 2, 40, 1024, 40_000, 2**62]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 5e-324, 1 - 1e-16]) | st.floats(1e-9, 1.0),
    min_p=st.sampled_from([0.0, 0.05, 5e-324, 1.0]) | st.floats(0.0, 1.0),
)
NUMBERS = st.floats(0.0, 1.0, exclude_max=True)


def draw(logits: Floats, sampling: SamplingParams, number: float) -> Drawn:
    raw = torch.from_numpy(logits)
    return KERNEL.draw([DrawRow(raw, raw, sampling, number)])


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(SIZES), st.integers(0, 2**32), st.sampled_from(KINDS), OPTIONS, NUMBERS)
@example(49_152, 1, "one above", SamplingParams(temperature=1.0, top_p=0.9999), 0.5)
@example(49_152, 1, "equal", SamplingParams(temperature=1.0, top_p=0.5, top_k=40_000), 0.999)
@example(49_152, 1, "hidden", SamplingParams(temperature=1.0, top_k=40_000), 0.0)
def test_floor_token_and_total_are_those_of_a_sort_in_float64(
    size: int, seed: int, kind: str, sampling: SamplingParams, number: float
) -> None:
    logits = logits_of(size, seed, kind)

    drawn = draw(logits, sampling, number)

    scores, floor = scores_of(logits, sampling.temperature), float(drawn.floors[0])
    border, (token,) = border_of(scores, sampling), drawn.tokens
    assert border.lowest <= floor <= border.highest
    weights = weights_of(scores, floor)
    share = np.cumsum(weights) / weights.sum()
    assert weights[token] > 0
    assert (share[token - 1] if token else 0.0) - EPSILON <= number <= share[token] + EPSILON
    with np.errstate(all="ignore"):
        total = float(logits.max()) + math.log(np.exp(logits.astype(np.float64) - float(logits.max())).sum())
    assert drawn.totals[0] == pytest.approx(total, rel=1e-6, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SIZES), st.integers(0, 2**32), st.sampled_from(KINDS), OPTIONS)
def test_what_stays_is_what_stays_in_torch(size: int, seed: int, kind: str, sampling: SamplingParams) -> None:
    logits = logits_of(size, seed, kind)
    processed = torch.from_numpy(logits.copy())[None]

    floor = float(draw(logits, sampling, 0.5).floors[0])

    process(processed, [SampleRow(sampling, 0, [], 0)])
    scores = scores_of(logits, sampling.temperature)
    border, theirs = border_of(scores, sampling), processed[0].numpy()
    if border.lowest == border.highest:
        np.testing.assert_array_equal(np.where(scores >= floor, scores, -np.inf), theirs)


@pytest.mark.parametrize("size", [1, 7, 1023, 3000])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_logit_that_is_not_finite_shows_in_the_total_wherever_it_stands(size: int, poison: float) -> None:
    for place in {0, size // 2, size - 1}:
        logits = logits_of(size, 3, "normal")
        logits[place] = poison

        assert not math.isfinite(draw(logits, SamplingParams(temperature=0.7, top_p=0.9), 0.5).totals[0])


def test_a_row_of_nothing_but_minus_infinity_is_not_finite() -> None:
    logits = np.full(1025, -np.inf, dtype=np.float32)

    assert not math.isfinite(draw(logits, SamplingParams(temperature=0.7, top_k=5), 0.5).totals[0])


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_bits_alone_that_it_has_among_64(threads: int) -> None:
    options = [
        SamplingParams(temperature=0.8),
        SamplingParams(temperature=1.0, top_p=0.95),
        SamplingParams(temperature=1.3, top_k=50, min_p=0.01),
        SamplingParams(),
    ]
    raw = torch.from_numpy(np.stack([logits_of(20_001, seed, "normal") for seed in range(64)]))
    rows = [DrawRow(raw[i], raw[i], options[i % 4], i / 64) for i in range(64)]
    alone = [KERNEL.draw([row]) for row in rows]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)

    drawn = KERNEL.draw(rows)

    torch.set_num_threads(before)
    for i, single in enumerate(alone):
        assert drawn.tokens[i] == single.tokens[0]
        assert drawn.totals[i].tobytes() == single.totals[0].tobytes()
        assert drawn.floors[i].tobytes() == single.floors[0].tobytes()


def test_what_lies_around_a_row_is_not_read() -> None:
    logits = logits_of(1037, 5, "normal")
    sampling = SamplingParams(temperature=0.9, top_k=900, top_p=0.99)
    expected = draw(logits, sampling, 0.7)
    around = np.full(1037 + 64, np.nan, dtype=np.float32)
    around[32:-32] = logits

    drawn = draw(around[32:-32], sampling, 0.7)

    assert (drawn.tokens[0], drawn.totals[0], drawn.floors[0]) == (
        expected.tokens[0],
        expected.totals[0],
        expected.floors[0],
    )


def test_the_scores_decide_and_the_total_is_that_of_the_raw_logits() -> None:
    raw = torch.from_numpy(logits_of(3000, 1, "normal"))
    scores = raw.clone()
    scores[1234] = 1000.0
    greedy = SamplingParams()

    drawn = KERNEL.draw([DrawRow(raw, scores, each, 0.3) for each in (greedy, replace(greedy, temperature=0.5))])

    assert drawn.tokens.tolist() == [1234, 1234]
    assert drawn.totals == pytest.approx(float(torch.logsumexp(raw.double(), dim=0)), abs=1e-6)


def test_the_first_of_equal_scores_is_the_greedy_token() -> None:
    logits = np.zeros(3000, dtype=np.float32)
    logits[[1500, 1501, 2900]] = 2.0

    assert draw(logits, SamplingParams(), 0.9).tokens.tolist() == [1500]


def test_the_switch_chooses_who_draws() -> None:
    cpu = torch.device("cpu")

    assert isinstance(choose_draw(cpu, EngineConfig()), NativeDraw)
    assert choose_draw(cpu, EngineConfig(native_sampling=False)) is None
    assert choose_draw(torch.device("meta"), EngineConfig()) is None


def test_without_a_compiler_torch_draws_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "/no/such/compiler")

    with caplog.at_level(logging.WARNING):
        assert choose_draw(torch.device("cpu"), EngineConfig()) is None

    assert "tokens are drawn in plain torch" in caplog.text
