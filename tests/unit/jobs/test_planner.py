from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import planner
from jobs.planner import SLACK, Cut, CutLimits, RowCost, cached_lengths, cut_shards, shared_lengths

PROMPTS = st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=25)
ROWS = st.lists(st.builds(RowCost, st.integers(0, 120), st.integers(0, 9)), max_size=120)
LIMITS = st.builds(
    lambda budget, low, more: CutLimits(budget_tokens=budget, min_rows=low, max_rows=low + more),
    st.integers(1, 400),
    st.integers(1, 12),
    st.integers(0, 20),
)


def flat(prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *(len(prompt) for prompt in prompts)])
    return np.array([*chain.from_iterable(prompts)], dtype=np.int32), offsets.astype(np.int64)


def rows(*costs: int, forks: tuple[int, ...] = ()) -> list[RowCost]:
    """Rows that share 10 tokens with the row before them, but 0 at each fork."""
    return [RowCost(cost, 0 if i in forks else 10) for i, cost in enumerate(costs)]


def limits(budget: int = 100, low: int = 1, high: int = 1000) -> CutLimits:
    return CutLimits(budget_tokens=budget, min_rows=low, max_rows=high)


@settings(max_examples=50, deadline=None)
@given(ROWS, LIMITS)
def test_shards_partition_the_rows_and_know_what_they_cost(given_rows: list[RowCost], limit: CutLimits) -> None:
    start = 0
    for cut in cut_shards(given_rows, limit):
        part = given_rows[start : start + cut.num_rows]
        assert cut == Cut(len(part), sum(row.computed for row in part))
        assert part
        start += cut.num_rows

    assert start == len(given_rows)


@settings(max_examples=50, deadline=None)
@given(ROWS, LIMITS)
def test_no_shard_is_below_min_rows_unless_the_job_is(given_rows: list[RowCost], limit: CutLimits) -> None:
    sizes = [cut.num_rows for cut in cut_shards(given_rows, limit)]

    assert len(sizes) <= 1 or min(sizes) >= limit.min_rows


@settings(max_examples=50, deadline=None)
@given(ROWS, LIMITS)
def test_only_min_rows_or_the_rest_of_the_job_make_a_shard_exceed_budget_or_max_rows(
    given_rows: list[RowCost], limit: CutLimits
) -> None:
    start = 0
    for cut in [*cut_shards(given_rows, limit)][:-1]:
        assert cut.num_rows <= limit.max_rows
        if cut.num_rows > limit.min_rows:
            assert cut.cost_tokens <= limit.budget_tokens * (1 + SLACK)
        start += cut.num_rows


def test_a_cut_goes_where_a_subtree_ends_near_the_budget() -> None:
    given_rows = rows(*[10] * 30, forks=(9, 21))

    assert [cut.num_rows for cut in cut_shards(given_rows, limits())] == [9, 12, 9]


def test_without_a_subtree_border_the_cut_is_at_the_budget() -> None:
    assert [cut.num_rows for cut in cut_shards(rows(*[10] * 30), limits())] == [10, 10, 10]


def test_a_row_larger_than_the_budget_is_a_shard_of_its_own() -> None:
    assert [*cut_shards(rows(5, 900, 5), limits())] == [Cut(1, 5), Cut(1, 900), Cut(1, 5)]


def test_rows_are_taken_only_as_far_as_the_next_cut_needs() -> None:
    taken = 0

    def counted() -> list[RowCost]:
        nonlocal taken
        for row in rows(*[10] * 1000):
            taken += 1
            yield row

    cuts = cut_shards(counted(), limits())
    next(cuts)

    assert taken <= 40


@settings(max_examples=50, deadline=None)
@given(PROMPTS)
def test_shared_lengths_are_the_common_prefixes_of_neighbours(prompts: list[list[int]]) -> None:
    def common(a: list[int], b: list[int]) -> int:
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    expected = [common(a, b) for a, b in pairwise(prompts)]

    assert shared_lengths(*flat(prompts)).tolist() == ([0, *expected] if prompts else [])


@settings(max_examples=50, deadline=None)
@given(PROMPTS)
def test_the_tokens_that_sorted_rows_do_not_share_are_the_edges_of_the_prefix_tree(prompts: list[list[int]]) -> None:
    prompts = sorted(prompts)
    edges = {tuple(prompt[: i + 1]) for prompt in prompts for i in range(len(prompt))}

    values, offsets = flat(prompts)

    assert int((np.diff(offsets) - shared_lengths(values, offsets)).sum()) == len(edges)


@settings(max_examples=50, deadline=None)
@given(PROMPTS)
def test_prompts_are_compared_in_slices_with_the_same_result(prompts: list[list[int]]) -> None:
    values, offsets = flat(prompts)
    expected = shared_lengths(values, offsets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "COMPARED_TOKENS", 3)
        found = shared_lengths(values, offsets)

    assert found.tolist() == expected.tolist()


@settings(max_examples=50, deadline=None)
@given(PROMPTS)
def test_cached_tokens_are_all_but_the_edges_of_the_prefix_tree_and_a_token_for_each_copy(
    prompts: list[list[int]],
) -> None:
    prompts = sorted(prompts)
    edges = {tuple(prompt[: i + 1]) for prompt in prompts for i in range(len(prompt))}
    copies = sum(one == other != [] for one, other in pairwise(prompts))

    values, offsets = flat(prompts)
    cached = cached_lengths(np.diff(offsets), shared_lengths(values, offsets))

    assert int(cached.sum()) == len(values) - len(edges) - copies


def test_a_huge_job_gets_larger_shards_and_not_more_of_them() -> None:
    small = CutLimits(budget_tokens=100, min_rows=2, max_rows=10)

    assert small.widened(num_rows=50, num_tokens=1000, most_shards=10) == small
    assert small.widened(num_rows=1000, num_tokens=5001, most_shards=10) == CutLimits(
        budget_tokens=501, min_rows=2, max_rows=100
    )
