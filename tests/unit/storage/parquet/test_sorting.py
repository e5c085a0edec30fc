import random
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.parquet.sorting import ExternalSorter, drop_repeats, merge_sorted, repeats, split_at

SCHEMA = pa.schema([("number", pa.int64()), ("text", pa.string()), ("raw", pa.binary()), ("at", pa.int64())])

ROWS = st.lists(
    st.tuples(
        st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1),
        st.text(alphabet="aé€😀\x00z\uffff", max_size=3),
        st.binary(max_size=3),
    ),
    max_size=80,
)
KEYS = st.lists(st.sampled_from(["number", "text", "raw"]), min_size=1, max_size=3, unique=True)


def as_batches(rows: list[tuple], size: int) -> list[pa.RecordBatch]:
    """Batches of `size` rows; the column `at` is the position of arrival."""
    numbered = [dict(zip(SCHEMA.names, (*row, at), strict=True)) for at, row in enumerate(rows)]
    return [pa.RecordBatch.from_pylist(numbered[lo : lo + size], SCHEMA) for lo in range(0, len(numbered), size)]


def as_python(batches) -> list[tuple]:
    return [tuple(row.values()) for batch in batches for row in batch.to_pylist()]


def expected(rows: list[tuple], keys: list[str]) -> list[tuple]:
    """What Python's stable sort says. Strings by their UTF-8 bytes."""
    places = [SCHEMA.get_field_index(key) for key in keys]
    numbered = [(*row, at) for at, row in enumerate(rows)]

    def key(row: tuple) -> tuple:
        return tuple(row[i].encode() if isinstance(row[i], str) else row[i] for i in places)

    return sorted(numbered, key=key)


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "spill"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, keys=KEYS, size=st.integers(1, 20), memory=st.sampled_from([1, 300, 3000]), fan_in=st.integers(2, 4))
def test_rows_come_out_as_pythons_stable_sort_has_them(folder, rows, keys, size, memory, fan_in):
    with ExternalSorter(SCHEMA, keys, folder, memory_bytes=memory, fan_in=fan_in) as sorter:
        for batch in as_batches(rows, size):
            sorter.add(batch)

        assert as_python(sorter.sorted()) == expected(rows, keys)


@settings(max_examples=50, deadline=None)
@given(parts=st.lists(ROWS, max_size=6), keys=KEYS, size=st.integers(1, 7))
def test_sorted_streams_merge_into_one_with_equal_keys_in_the_order_of_the_streams(parts, keys, size):
    flat = [row for part in parts for row in part]
    sources, before = [], 0
    for part in parts:
        ordered = [dict(zip(SCHEMA.names, (*row[:3], before + row[3]), strict=True)) for row in expected(part, keys)]
        sources.append(
            [pa.RecordBatch.from_pylist(ordered[lo : lo + size], SCHEMA) for lo in range(0, len(ordered), size)]
        )
        before += len(part)

    assert as_python(merge_sorted(sources, keys)) == expected(flat, keys)


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.sampled_from("ab"), st.just(b"")), max_size=40),
    size=st.integers(1, 9),
)
def test_of_equal_keys_the_first_row_stays(rows, size):
    ordered = [row[:3] for row in expected(rows, ["number", "text"])]

    kept = as_python(drop_repeats(as_batches(ordered, size), ["number", "text"]))

    assert [row[:3] for row in kept] == sorted(set(ordered))
    assert [row[3] for row in kept] == [ordered.index(row) for row in sorted(set(ordered))]


def test_a_repeat_is_seen_across_the_border_of_two_batches():
    batches = as_batches([(1, "a", b""), (1, "a", b""), (2, "a", b"")], size=1)

    assert [mask.tolist() for _, mask in repeats(batches, ["number"])] == [[False], [True], [False]]


def test_a_small_sort_writes_no_file(folder):
    with ExternalSorter(SCHEMA, ["number"], folder) as sorter:
        sorter.add(as_batches([(2, "", b""), (1, "", b"")], 2)[0])

        assert [row[0] for row in as_python(sorter.sorted())] == [1, 2]
        assert not folder.exists()


@pytest.mark.parametrize("memory_bytes", [500, 64 << 20])
def test_sorted_rows_can_be_asked_for_again(folder, memory_bytes):
    with ExternalSorter(SCHEMA, ["number"], folder, memory_bytes=memory_bytes, fan_in=2) as sorter:
        for batch in as_batches([(number % 7, "text", b"raw") for number in range(50)], 10):
            sorter.add(batch)

        first = as_python(sorter.sorted(again=True))
        again = as_python(sorter.sorted())

    assert first == again
    assert len(again) == 50


def test_spill_files_are_gone_after_a_sort_that_was_left_half_way(folder):
    rows = [(number, "text", b"raw") for number in range(100)]
    random.Random(0).shuffle(rows)

    with ExternalSorter(SCHEMA, ["number"], folder, memory_bytes=500, fan_in=2) as sorter:
        for batch in as_batches(rows, 10):
            sorter.add(batch)
        next(sorter.sorted())
        spilled = list(folder.rglob("*.arrows"))

    assert spilled
    assert list(folder.iterdir()) == []


def test_no_more_files_than_the_fan_in_are_merged_at_a_time(folder, monkeypatch):
    widths = []

    def merge(sources, keys):
        widths.append(len(sources))
        return merge_sorted(sources, keys)

    monkeypatch.setattr("storage.parquet.sorting.merge_sorted", merge)
    rows = [(number, "", b"") for number in range(60)]
    with ExternalSorter(SCHEMA, ["number"], folder, memory_bytes=1, fan_in=3) as sorter:
        for batch in as_batches(rows, 1):
            sorter.add(batch)

        assert len(as_python(sorter.sorted())) == 60

    assert max(widths) == 3


def test_the_sort_holds_a_bounded_part_of_the_rows(folder):
    memory = 3 << 20
    rng = random.Random(0)
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    peak = 0
    with ExternalSorter(SCHEMA, ["raw"], folder, memory_bytes=memory, fan_in=8) as sorter:
        for _ in range(60):
            columns = [
                pa.array(range(1000)),
                pa.array(["x"] * 1000),
                pa.array([rng.randbytes(400) for _ in range(1000)]),
            ]
            sorter.add(pa.RecordBatch.from_arrays([*columns, columns[0]], schema=SCHEMA))
            del columns
            peak = max(peak, pool.bytes_allocated() - before)
        last = b""
        for batch in sorter.sorted():  # 25 MB in all
            peak = max(peak, pool.bytes_allocated() - before)
            values = batch["raw"].to_pylist()
            assert last <= values[0]
            assert values == sorted(values)
            last = values[-1]

    assert peak < 2 * memory


@given(
    numbers=st.lists(st.integers(0, 9), max_size=20).map(sorted),
    bounds=st.lists(st.integers(0, 9), max_size=4, unique=True).map(sorted),
    size=st.integers(1, 5),
)
def test_a_stream_is_split_before_the_first_row_that_is_not_below_a_bound(numbers, bounds, size):
    batches = as_batches([(number, "", b"") for number in numbers], size)

    pieces = [[row[0] for row in as_python(piece)] for piece in split_at(batches, ["number"], [(at,) for at in bounds])]

    limits = [-1, *bounds, 10]
    wanted = [[n for n in numbers if low <= n < high] for low, high in pairwise(limits)]
    assert pieces == [piece for piece in wanted if piece]
