from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.tokens import INVALID, TokenRows, binary_to_tokens, given_tokens, tokens_to_binary

IDS = st.integers(0, 2**31 - 1) | st.sampled_from([0, 1, 255, 256, 257, 65535, 65536])
ROWS = st.lists(st.lists(IDS, max_size=5), max_size=12)


def pack(rows: list[list[int]]) -> pa.Array:
    values = np.array([*chain.from_iterable(rows)], dtype=np.int32)
    return tokens_to_binary(values, np.array([len(row) for row in rows], dtype=np.int64))


@settings(max_examples=50, deadline=None)
@given(ROWS, st.integers(0, 12))
def test_bytes_hold_the_ids_and_sort_as_they_do(rows: list[list[int]], start: int) -> None:
    packed = pack(rows)

    values, offsets = binary_to_tokens(packed.slice(start))
    assert [values[lo:hi].tolist() for lo, hi in pairwise(offsets)] == rows[start:]
    assert packed.sort().equals(pack(sorted(rows)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.none() | st.lists(st.none() | st.integers(-2, 12), max_size=4), max_size=8))
def test_only_rows_of_known_ids_are_kept(rows: list[list[int | None] | None]) -> None:
    def good(row: list[int | None] | None) -> bool:
        return bool(row) and all(each is not None and 0 <= each < 10 for each in row or ())

    found = given_tokens(pa.array(rows, pa.list_(pa.int32())), vocab_size=10)

    assert found.values.tolist() == [*chain.from_iterable(row or () for row in rows if good(row))]
    assert found.lengths.tolist() == [len(row or ()) if good(row) else 0 for row in rows]
    assert {i: code for i, (code, _) in found.errors.items()} == {
        i: INVALID for i, row in enumerate(rows) if not good(row)
    }


def test_a_cut_keeps_the_ids_asked_for_in_each_row() -> None:
    tokens = TokenRows(np.arange(9, dtype=np.int32), np.array([4, 0, 5]), {})

    tokens.keep(np.array([1, 0, 0]), np.array([2, 0, 3]))

    assert (tokens.values.tolist(), tokens.lengths.tolist()) == ([1, 2, 4, 5, 6], [2, 0, 3])
