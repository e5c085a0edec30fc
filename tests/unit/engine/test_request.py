from __future__ import annotations

import math
from typing import Any

import pytest

from engine.request import GREEDY_BELOW, SamplingParams

NUMBERS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10**400], ids=["nan", "inf", "-inf", "huge"])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_means_nothing_is_a_problem_with_its_options_name(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}

    problem = SamplingParams(**options).problem()

    assert problem is not None
    assert problem.startswith(f"{name} is")


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1), ("top_k", -1), ("top_p", 0), ("top_p", 2), ("min_p", -1), ("repetition_penalty", 0)],
)
def test_a_value_outside_its_range_is_a_problem(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}

    assert name in (SamplingParams(**options).problem() or "")


def test_ordinary_and_extreme_values_are_no_problem() -> None:
    extreme = SamplingParams(temperature=1e-300, top_k=2**62, top_p=1e-300, min_p=1.0, repetition_penalty=1e300)

    assert SamplingParams().problem() is None
    assert extreme.problem() is None


def test_only_temperatures_below_the_threshold_are_greedy() -> None:
    assert SamplingParams(temperature=0.99 * GREEDY_BELOW).is_greedy
    assert not SamplingParams(temperature=GREEDY_BELOW).is_greedy
