from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.branches import BRANCH_TOKENS, branch_places
from jobs.planner import shared_lengths

Row = tuple[tuple[int, ...], int]  # token ids, tokens that it may generate

ROWS = st.lists(st.tuples(st.lists(st.integers(0, 2), max_size=7).map(tuple), st.integers(0, 5)), max_size=40)


def walk(rows: list[Row], branch_tokens: int = 1) -> list[Row]:
    """The rows by their tokens, then in the order under test."""
    rows = sorted(rows, key=lambda row: row[0])
    offsets = np.cumsum([0, *(len(tokens) for tokens, _ in rows)]).astype(np.int64)
    values = np.array([token for tokens, _ in rows for token in tokens], dtype=np.int32)
    expected = np.array([each for _, each in rows], dtype=np.int64)
    places = branch_places(shared_lengths(values, offsets), expected, branch_tokens)
    assert sorted(places.tolist()) == [*range(len(rows))]
    return [rows[i] for i in np.argsort(places)]


def in_common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def sum_shared(rows: list[Row]) -> int:
    return sum(in_common(before[0], row[0]) for before, row in pairwise(rows))


def test_rows_without_a_common_prefix_come_longest_first():
    rows = [((number,), expected) for number, expected in enumerate([8, 256, 16, 64, 256])]

    order = walk(rows)

    assert order == [rows[1], rows[4], rows[3], rows[2], rows[0]]


def test_a_branch_comes_as_its_longest_row_would_and_its_rows_stay_together():
    rows = [((1, 1), 8), ((1, 2), 64), ((2,), 16), ((3,), 128)]

    order = walk(rows)

    assert [expected for _, expected in order] == [128, 64, 8, 16]


def test_some_first_words_in_common_make_no_branch():
    words = (7,) * (BRANCH_TOKENS - 1)
    rows = [((*words, 1), 8), ((*words, 2), 64), ((9,), 16)]

    order = walk(rows, BRANCH_TOKENS)

    assert [expected for _, expected in order] == [64, 16, 8]


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_every_shared_prefix_is_still_computed_once(rows: list[Row]) -> None:
    by_tokens = sorted(rows, key=lambda row: row[0])

    order = walk(rows)

    assert sum_shared(order) == sum_shared(by_tokens)


@settings(max_examples=100, deadline=None)
@given(ROWS, st.integers(2, 4))
def test_a_row_loses_less_than_a_branch_needs(rows: list[Row], branch_tokens: int) -> None:
    by_tokens = sorted(rows, key=lambda row: row[0])

    order = walk(rows, branch_tokens)

    assert sum_shared(order) >= sum_shared(by_tokens) - len(rows) * (branch_tokens - 1)


@settings(max_examples=100, deadline=None)
@given(ROWS)
def test_the_longest_row_is_in_the_first_branch(rows: list[Row]) -> None:
    order = walk([*rows, ((9,), 6)])

    assert order[0] == ((9,), 6)


@settings(max_examples=50, deadline=None)
@given(ROWS)
def test_rows_of_one_length_stay_in_the_order_of_their_tokens(rows: list[Row]) -> None:
    alike = [(tokens, 5) for tokens, _ in rows]

    order = walk(alike)

    assert order == sorted(alike, key=lambda row: row[0])
