"""Whatever type a column of the input has, its values come out as they went in."""

import datetime as dt
import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import layout
from storage.parquet.plan import PlanWriter, read_shard
from storage.parquet.publisher import PublishJob, publish
from storage.parquet.reader import open_input
from storage.parquet.rows import ResultRow
from storage.parquet.schema import PASS, plan_schema
from storage.parquet.writer import SegmentWriter, write_shard

COLUMNS = {
    "bool": pa.array([True, None, False]),
    "uint8": pa.array([1, None, 255], pa.uint8()),
    "uint64": pa.array([1, None, 2**64 - 1], pa.uint64()),
    "half": pa.array([0.5, None, -1.5], pa.float16()),
    "float": pa.array([0.1, None, float("inf")], pa.float32()),
    "text": pa.array(["a\0b", None, "😀"]),
    "large": pa.array(["a", None, ""], pa.large_string()),
    "binary": pa.array([b"\xff", None, b""]),
    "fixed": pa.array([b"ab", None, b"\0\0"], pa.binary(2)),
    "category": pa.array(["x", None, "x"]).dictionary_encode(),
    "decimal": pa.array([decimal.Decimal("1.25"), None, decimal.Decimal("-9.99")], pa.decimal128(5, 2)),
    "date": pa.array([dt.date(2026, 1, 2), None, dt.date(1, 1, 1)]),
    "time": pa.array([1, None, 86399999999999], pa.time64("ns")),
    "nanoseconds": pa.array([1, None, 1767225600123456789], pa.timestamp("ns")),
    "zoned": pa.array([1, None, 2], pa.timestamp("us", "Europe/Berlin")),
    "duration": pa.array([1, None, 2], pa.duration("ns")),
    "nothing": pa.nulls(3),
    "numbers": pa.array([[1, None], None, []], pa.list_(pa.int16())),
    "vector": pa.array([[1.0, 2.0], None, [3.0, None]], pa.list_(pa.float32(), 2)),
    "messages": pa.array([[{"role": "user", "content": None}], None, []]),
    "nested": pa.array([{"a": {"b": [1]}}, None, {"a": None}]),
    "groups": pa.array(["the name", None, "of a metric"]),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_values_of_any_type_pass_through(tmp_path, name):
    source = pa.table({name: COLUMNS[name]})
    pq.write_table(source, tmp_path / "in.parquet")
    opened = open_input([str(tmp_path / "in.parquet")])
    own = [{"row_index": i, "custom_id": str(i), "prompt_token_ids": [1], "seed": 0} for i in range(3)]

    out = tmp_path / "out"
    with PlanWriter(out / layout.PLAN, opened.schema) as plan:
        [batch] = opened.batches(10)
        planned = pa.RecordBatch.from_pylist(own, pa.schema(list(plan_schema(pa.schema([])))))
        columns = [*planned.columns, batch[name]]
        plan.write_shard([pa.RecordBatch.from_arrays(columns, schema=plan_schema(opened.schema))])
        sha256 = plan.close()
    values = read_shard(out / layout.PLAN, 0)[PASS + name]
    writer = SegmentWriter(out, 0, 1, opened.schema)
    for index in (2, 0, 1):
        row = ResultRow(
            custom_id=str(index), row_index=index, sample_index=0, status="errored", passed={name: values[index]}
        )
        writer.append([row])
    segment = writer.seal()
    publish(out, PublishJob(name="types", epoch=1, plan_sha256=sha256), [write_shard(out, 0, 1, [segment.key])])

    plain = source[name].cast(opened.schema.field(name).type)
    for folder in (layout.DATA, layout.ERRORS):
        assert pq.read_table(out / folder)[name].equals(plain)
