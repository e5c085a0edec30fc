from __future__ import annotations

from collections import Counter
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.request import Junction
from jobs.junctions import MOST_JUNCTIONS, RowPlan, row_plans

Prompts = list[tuple[int, ...]]

NO_CAP = 10**6
PROMPTS = st.lists(st.lists(st.integers(0, 2), max_size=7).map(tuple), max_size=25)
BEGINNINGS = st.lists(st.integers(0, 40).map(lambda length: (1,) * length), max_size=40)
FORKS = st.lists(st.tuples(st.integers(0, 30), st.integers(2, 4)).map(lambda at: (1,) * at[0] + (at[1],)), max_size=40)


def plans(prompts: Prompts, most: int = NO_CAP) -> list[RowPlan]:
    """The plans, made of rows that do not lie side by side in memory."""
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    starts = np.cumsum(np.array([1, *(lengths + 1)], dtype=np.int64))[:-1]
    values = np.array([-1, *chain.from_iterable((*prompt, -1) for prompt in prompts)], dtype=np.int32)
    return row_plans(values, starts, lengths, most)


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def plans_by_comparing_all(prompts: Prompts) -> list[RowPlan]:
    users: list[Counter[int]] = [Counter() for _ in prompts]
    planned = []
    for row, prompt in enumerate(prompts):
        shared = [common(prompt, earlier) for earlier in prompts[:row]]
        length = min(max(shared, default=0), max(len(prompt) - 1, 0))
        planned.append(length)
        if length:
            users[next(first for first, each in enumerate(shared) if each >= length)][length] += 1
    junctions = [tuple(Junction(*each) for each in sorted(counter.items())) for counter in users]
    return [*map(RowPlan, planned, junctions)]


def tree_edges(prompts: Prompts) -> int:
    return len({prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)})


class ExactEngine:
    """Runs rows one by one and keeps what they announce, exactly and as long as announced; nothing else."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, ...], int] = {}  # tokens before the checkpoint -> users still to come
        self.computed = 0

    def run(self, prompts: Prompts, made: list[RowPlan]) -> None:
        for prompt, plan in zip(prompts, made, strict=True):
            self._start(prompt, plan.planned_tokens)
            at = plan.planned_tokens
            for junction in plan.junctions:
                assert at < junction.length <= len(prompt), "only what a row computes can be kept, shortest first"
                at = junction.length
                tokens = prompt[:at]
                assert tokens not in self.kept, "one row announces what another has announced"
                self.kept[tokens] = junction.num_users

    def _start(self, prompt: tuple[int, ...], planned: int) -> None:
        self.computed += len(prompt) - planned
        if planned:
            assert planned < len(prompt), "the last token has to run"
            self.kept[prompt[:planned]] -= 1
            if not self.kept[prompt[:planned]]:
                del self.kept[prompt[:planned]]


@settings(max_examples=300, deadline=None)
@given(st.one_of(PROMPTS, BEGINNINGS, FORKS))
def test_plans_equal_those_of_comparing_each_row_with_all_before_it(prompts: Prompts) -> None:
    assert plans(prompts) == plans_by_comparing_all(prompts)


@settings(max_examples=100, deadline=None)
@given(st.one_of(PROMPTS, BEGINNINGS, FORKS))
def test_sorted_rows_compute_the_edges_of_their_prefix_tree_and_a_token_for_each_copy(prompts: Prompts) -> None:
    prompts = sorted(prompts)
    engine = ExactEngine()

    engine.run(prompts, plans(prompts))

    copies = sum(count - 1 for prompt, count in Counter(prompts).items() if prompt)
    assert engine.computed == tree_edges(prompts) + copies
    assert not engine.kept


@settings(max_examples=100, deadline=None)
@given(st.one_of(PROMPTS, BEGINNINGS, FORKS))
def test_rows_in_any_order_compute_one_token_more_where_all_of_a_prompt_is_known(prompts: Prompts) -> None:
    engine = ExactEngine()

    engine.run(prompts, plans(prompts))

    known = sum(any(e[: len(p)] == p for e in prompts[:row]) for row, p in enumerate(prompts) if p)
    assert engine.computed == tree_edges(prompts) + known
    assert not engine.kept


@settings(max_examples=300, deadline=None)
@given(st.one_of(PROMPTS, BEGINNINGS, FORKS), st.integers(1, 3))
@example([(1,) * 9, *((1,) * length for length in range(9))], 2)
def test_with_too_many_junctions_rows_start_at_the_deepest_one_that_is_kept(prompts: Prompts, most: int) -> None:
    wanted = plans(prompts)

    made = plans(prompts, most)

    ExactEngine().run(prompts, made)
    assert all(len(plan.junctions) <= most for plan in made)
    kept = {prompt[: each.length] for prompt, plan in zip(prompts, made, strict=True) for each in plan.junctions}
    for prompt, plan, best in zip(prompts, made, wanted, strict=True):
        ends = range(best.planned_tokens, 0, -1)
        assert plan.planned_tokens == next((end for end in ends if prompt[:end] in kept), 0)


@settings(max_examples=100, deadline=None)
@given(st.one_of(PROMPTS, BEGINNINGS, FORKS), st.integers(1, 3))
def test_a_row_drops_junctions_only_if_it_has_too_many(prompts: Prompts, most: int) -> None:
    made = plans(prompts, most)

    for plan, wanted in zip(made, plans(prompts), strict=True):
        lengths = {each.length for each in plan.junctions}
        assert lengths <= {each.length for each in wanted.junctions}
        assert len(lengths) == min(most, len(wanted.junctions))


def test_copies_of_a_prompt_start_one_token_before_its_end() -> None:
    assert plans([(5, 6, 7)] * 4) == [RowPlan(0, (Junction(2, 3),)), *[RowPlan(2)] * 3]


def test_nothing_is_kept_for_a_copy_of_a_prompt_of_one_token() -> None:
    assert plans([(5,), (5,)]) == [RowPlan(), RowPlan()]


def test_a_prompt_that_begins_another_hands_over_at_its_end_or_one_token_before() -> None:
    assert plans([(5, 6), (5, 6, 7)]) == [RowPlan(0, (Junction(2, 1),)), RowPlan(2)]
    assert plans([(5, 6, 7), (5, 6)]) == [RowPlan(0, (Junction(1, 1),)), RowPlan(1)]


def test_unique_prompts_announce_nothing() -> None:
    assert plans([(1, 9), (2, 9), (3, 9)]) == [RowPlan()] * 3


def test_a_branch_hands_on_what_it_has_taken_over() -> None:
    made = plans([(1, 1, 1), (1, 1, 2, 3), (1, 1, 2, 4), (1, 5)])

    assert made == [RowPlan(0, (Junction(1, 1), Junction(2, 1))), RowPlan(2, (Junction(3, 1),)), RowPlan(3), RowPlan(1)]


def test_a_prompt_and_all_its_beginnings_keep_few_junctions_far_apart() -> None:
    tokens = tuple(range(2000))

    made = plans([tokens, *(tokens[:end] for end in range(1999, 0, -1))], MOST_JUNCTIONS)

    lengths = [each.length for each in made[0].junctions]
    assert len(lengths) == MOST_JUNCTIONS
    assert not any(plan.junctions for plan in made[1:])
    # Evenly spread, 16 places would save 16/17 of the tokens that one place for each row saves.
    assert sum(plan.planned_tokens for plan in made) > 0.9 * sum(range(1999))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_what_is_kept_saves_most_of_what_any_choice_could(most: int) -> None:
    forks = {3: 1, 10: 4, 11: 2, 30: 1, 31: 9}  # tokens before the fork -> its branches
    prompts = [(0,) * 40, *((0,) * at + (branch,) for at, num in forks.items() for branch in range(1, num + 1))]

    made = plans(prompts, most)

    def saved(kept: tuple[int, ...]) -> int:
        return sum(num * max((each for each in kept if each <= at), default=0) for at, num in forks.items())

    assert sum(plan.planned_tokens for plan in made) == max(saved(kept) for kept in combinations(forks, most))


def test_ten_thousand_rows_in_any_order_are_planned_without_comparing_all_pairs() -> None:
    numbers = np.random.default_rng(0).permutation(10_000)
    prompts = [(7,) * 50 + tuple(divmod(int(number), 100)) for number in numbers]

    made = plans(prompts, MOST_JUNCTIONS)

    assert Counter(plan.planned_tokens for plan in made) == {0: 1, 50: 99, 51: 9900}
    assert made[0].junctions[0] == Junction(50, 99)
