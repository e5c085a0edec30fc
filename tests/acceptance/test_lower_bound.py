"""Prompt tokens that are computed, held against the least that any cache could do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.acceptance.bound import (
    LAYOUTS,
    Prompt,
    ample,
    humaneval,
    lower_bound,
    pairs,
    planned_on_grid,
    quarter,
    run,
    tree,
)

pytestmark = pytest.mark.models

NAMES = ["humaneval", "tree", "pairs"]
RowsOf = Callable[[str], list[Prompt]]


@pytest.fixture(scope="module")
def rows_of(demo_model: Callable[[str], Path]) -> RowsOf:
    """The rows of a workload, in prefix order."""
    rows = {"humaneval": humaneval(demo_model("smollm2-135m")), "tree": tree(), "pairs": pairs()}
    return lambda name: sorted(rows[name])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_with_enough_memory_the_bound_is_reached_and_a_quarter_costs_at_most_a_tenth(
    name: str, layout: str, rows_of: RowsOf
) -> None:
    rows, groups = rows_of(name), LAYOUTS[layout]
    bound = lower_bound(rows)

    enough = run(groups, [rows], ample())
    little = run(groups, [rows], quarter(groups, enough.peak))

    assert (enough.counters.computed_tokens, enough.counters.recomputed_tokens) == (bound, 0)
    assert enough.counters.limited_by == ()
    assert little.over(bound) <= 1.10
    assert little.num_steps < 6 * enough.num_steps, "a quarter of the memory is for about a quarter of the rows"


@pytest.mark.parametrize(("layout", "grid"), [("full", 1), ("sliding", 1), ("linear", 64), ("all kinds", 256)])
@pytest.mark.parametrize("name", NAMES)
def test_in_strict_mode_a_row_costs_less_than_one_step_of_its_grid_above_the_bound(
    name: str, layout: str, grid: int, rows_of: RowsOf
) -> None:
    """Models without states have the grid 1: for them it is the bound itself."""
    rows, groups = rows_of(name), LAYOUTS[layout]
    bound = lower_bound(rows)

    ran = run(groups, [rows], replace(ample(), grid=grid))

    above = ran.counters.computed_tokens - bound
    assert 0 <= above <= (grid - 1) * len(rows)
    assert ran.counters.limited_by == ((("grid", above),) if above else ())
    assert (bound + above, ran.counters.recomputed_tokens) == (planned_on_grid(rows, grid), 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_two_shards_at_once_stay_within_a_tenth_of_the_bound(name: str, layout: str, rows_of: RowsOf) -> None:
    rows, groups = rows_of(name), LAYOUTS[layout]
    shards = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    bound = lower_bound(rows)

    enough = run(groups, shards, ample())
    little = run(groups, shards, quarter(groups, enough.peak))

    assert 1.0 <= enough.over(bound) <= 1.01
    assert 1.0 <= little.over(bound) <= 1.10


@pytest.mark.parametrize("layout", ["full", "sliding", "linear"])
def test_rows_in_random_order_do_not_run_one_by_one_when_memory_is_short(layout: str) -> None:
    rows, groups = tree(), LAYOUTS[layout]

    enough = run(groups, [rows], ample())
    little = run(groups, [rows], quarter(groups, enough.peak))

    assert little.num_steps < 20 * enough.num_steps, "where places never yield it is 34 times as many"
