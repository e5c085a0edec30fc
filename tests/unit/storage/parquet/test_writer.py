import dataclasses
import os
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import layout
from storage.durable import sha256_file
from storage.errors import FileDamaged
from storage.parquet.rows import ResultRow
from storage.parquet.schema import DATA_FIELDS, METRIC_FIELDS, PASS, STATUS_VALUES, result_schema
from storage.parquet.writer import SegmentWriter, segment_keys, write_shard
from tests.unit.storage.parquet.samples import PASSED, result_row, write_segments


def test_a_result_row_has_exactly_the_columns_of_the_schema():
    columns = [field.name for field in (*DATA_FIELDS, *METRIC_FIELDS)]

    assert [field.name for field in dataclasses.fields(ResultRow)] == [*columns, "passed"]


def test_a_segment_has_the_declared_schema_even_when_all_values_are_null(tmp_path):
    bare = ResultRow(custom_id="a", row_index=0, sample_index=0, status="canceled", passed=dict.fromkeys(PASSED.names))

    [segment] = write_segments(tmp_path, 0, 1, [bare])

    table = pq.read_table(tmp_path / segment.key)
    assert table.schema.equals(result_schema(PASSED))
    assert table["status"].chunk(0).dictionary.equals(STATUS_VALUES)
    assert [name for name in table.schema.names if table[name].null_count == 0] == [
        "custom_id", "row_index", "sample_index", "status",
    ]  # fmt: skip


def test_all_values_of_a_row_come_back(tmp_path):
    moment = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    row = result_row(8, started_at=moment, engine_seconds=0.25, cumulative_logprob=-1.5, attempts=2)

    [segment] = write_segments(tmp_path, 3, 2, [row])

    values = {
        name.removeprefix(PASS): value for name, value in pq.read_table(tmp_path / segment.key).to_pylist()[0].items()
    }
    assert values == {
        **{f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name != "passed"},
        **row.passed,
    }


def test_scalars_of_the_plan_pass_through_without_loss(tmp_path):
    passed = pa.schema([("at", pa.timestamp("ns")), ("tags", pa.list_(pa.string()))])
    source = pa.table({"at": [1, None], "tags": [["x"], None]}, schema=passed)
    writer = SegmentWriter(tmp_path, 0, 1, passed)
    for index in range(2):
        values = {name: source[name][index] for name in passed.names}
        writer.append([ResultRow(custom_id="a", row_index=index, sample_index=0, status="succeeded", passed=values)])

    segment = writer.seal()

    written = pq.read_table(tmp_path / segment.key).select([PASS + name for name in passed.names])
    assert written.rename_columns(passed.names).equals(source)


def test_a_sealed_segment_says_what_it_holds(tmp_path):
    first, second = write_segments(tmp_path, 7, 3, [result_row(index) for index in range(5)], segment_rows=3)

    assert (first.key, second.key) == (layout.segment(7, 3, 0), layout.segment(7, 3, 1))
    assert first.sha256 == sha256_file(tmp_path / first.key)
    assert (second.rows, second.succeeded, second.errored) == (2, 1, 1)
    assert segment_keys(tmp_path, [first.key, second.key]) == {(index, 0) for index in range(5)}


def test_nothing_pending_is_nothing_to_seal(tmp_path):
    writer = SegmentWriter(tmp_path, 0, 1, PASSED)
    writer.append([result_row(0)])
    assert writer.pending == 1

    assert writer.seal() is not None

    assert writer.pending == 0
    assert writer.seal() is None


def test_rows_stay_pending_when_the_disk_refuses_them(tmp_path, monkeypatch):
    writer = SegmentWriter(tmp_path, 0, 1, PASSED)
    writer.append([result_row(0)])

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        (tmp_path / layout.SEGMENTS).mkdir(parents=True)
        with pytest.raises(OSError, match="No space left"):
            writer.seal()

    assert list((tmp_path / layout.SEGMENTS).iterdir()) == []
    assert writer.pending == 1
    assert writer.seal().key == layout.segment(0, 1, 0)


def test_a_shard_file_has_every_key_once_in_order_whatever_epoch_wrote_it(tmp_path):
    older = write_segments(tmp_path, 0, 1, [result_row(5), result_row(3), result_row(3, sample=1)])
    newer = write_segments(tmp_path, 0, 2, [result_row(3, output_text="again"), result_row(1)])

    shard = write_shard(tmp_path, 0, 2, [segment.key for segment in (*older, *newer)])

    table = pq.read_table(tmp_path / shard.key)
    assert shard.key == layout.shard_file(0, 2)
    assert shard.sha256 == sha256_file(tmp_path / shard.key)
    assert list(zip(table["row_index"].to_pylist(), table["sample_index"].to_pylist(), strict=True)) == [
        (1, 0), (3, 0), (3, 1), (5, 0),
    ]  # fmt: skip
    assert table["output_text"][1].as_py() == result_row(3).output_text
    assert (shard.rows, shard.succeeded, shard.errored) == (4, 4, 0)
    assert table.schema.equals(result_schema(PASSED))


def test_a_damaged_segment_stops_the_shard_and_leaves_no_file(tmp_path):
    [segment] = write_segments(tmp_path, 0, 1, [result_row(index) for index in range(100)], segment_rows=100)
    content = bytearray((tmp_path / segment.key).read_bytes())
    content[100:140] = bytes(40)
    (tmp_path / segment.key).write_bytes(content)

    with pytest.raises(FileDamaged, match="shard-00000"):
        write_shard(tmp_path, 0, 1, [segment.key])

    assert list((tmp_path / layout.SHARDS).iterdir()) == []
    assert not list(tmp_path.rglob("*.arrows"))


@pytest.mark.parametrize("key", ["../elsewhere.parquet", "/etc/passwd", "a/../../b", "link/x.parquet"])
def test_a_key_that_leaves_the_output_directory_is_refused(tmp_path, key):
    out = tmp_path / "out"
    out.mkdir()
    (out / "link").symlink_to(tmp_path)

    with pytest.raises(FileDamaged, match="does not stay inside"):
        segment_keys(out, [key])
