from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.parquet.parts import cut_row_groups, row_sizes

VALUES = pa.table(
    {
        "number": pa.array([1, None, 3, 4], pa.int64()),
        "text": ["", "ab", None, "é"],
        "large": pa.array([b"", b"abc", None, b"z"], pa.large_binary()),
        "flag": [True, False, None, True],
        "numbers": pa.array([[1, 2], [], None, [3]], pa.list_(pa.int32())),
        "pair": pa.array([[1, 2], [3, 4], None, [5, 6]], pa.list_(pa.int32(), 2)),
        "messages": [[{"role": "user", "content": "hi"}], None, [], [{"role": None, "content": "x"}] * 2],
        "named": pa.array([[("a", 1)], None, [], [("b", 2), ("c", 3)]], pa.map_(pa.string(), pa.int64())),
        "money": pa.array([1, None, 2, 3], pa.decimal128(10, 2)),
        "nothing": pa.nulls(4),
        "at": pa.array([1, 2, None, 3], pa.timestamp("ns", "UTC")),
    }
)


def test_a_row_has_the_same_size_wherever_it_lies():
    whole = row_sizes(VALUES.to_batches()[0])

    for row in range(4):
        lone = pa.RecordBatch.from_pylist(VALUES.slice(row, 1).to_pylist(), VALUES.schema)
        assert row_sizes(VALUES.to_batches()[0].slice(row, 1)).tolist() == [whole[row]]
        assert row_sizes(lone).tolist() == [whole[row]]


def test_text_inside_lists_counts():
    short, long = ([[{"role": "user", "content": "x" * size}]] for size in (1, 1001))

    sizes = row_sizes(pa.RecordBatch.from_pydict({"messages": [*short, *long]}))

    assert sizes[1] - sizes[0] == 1000


@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    limit=st.integers(1, 100),
)
def test_where_a_row_group_ends_depends_on_the_rows_alone(lengths, cuts, limit):
    batch = pa.RecordBatch.from_pydict({"text": pa.array(["x" * length for length in lengths], pa.string())})
    edges = sorted({0, *(min(cut, batch.num_rows) for cut in cuts), batch.num_rows})
    pieces = [batch.slice(lo, hi - lo) for lo, hi in pairwise(edges)]

    groups = list(cut_row_groups(pieces, limit))

    assert [value for table, _ in groups for value in table["text"].to_pylist()] == batch["text"].to_pylist()
    assert [table.num_rows for table, _ in groups] == [table.num_rows for table, _ in cut_row_groups([batch], limit)]
    sizes = [row_sizes(table.combine_chunks().to_batches()[0]) for table, _ in groups]
    assert [int(size.sum()) for size in sizes] == [size for _, size in groups]
    for size in sizes[:-1]:
        assert size.sum() >= limit
    for size in sizes:
        assert size[:-1].sum() < limit


def test_an_empty_stream_has_no_row_groups():
    assert list(cut_row_groups([])) == []


@pytest.mark.parametrize("size", [1, 3])
def test_a_row_larger_than_a_row_group_stands_alone(size):
    texts = ["x" * 500] * size

    groups = list(cut_row_groups([pa.RecordBatch.from_pydict({"text": texts})], 100))

    assert [table.num_rows for table, _ in groups] == [1] * size
    assert np.all(np.array([size for _, size in groups]) > 500)
