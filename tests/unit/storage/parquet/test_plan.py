import pyarrow as pa
import pytest

from storage import layout
from storage.errors import FileDamaged
from storage.parquet.plan import PlanWriter, passed_schema, read_rows, read_shard, shard_rows, verify_plan
from storage.parquet.schema import plan_schema
from tests.unit.storage.parquet.samples import PASSED, make_job, plan_row


def test_a_shard_reads_back_as_it_was_planned(tmp_path):
    job = make_job(tmp_path, [4, 0, 3, 1, 2], shard_rows=2)

    for idx, rows in enumerate(job.shards):
        assert read_shard(tmp_path / layout.plan(1), idx).to_pylist() == [
            {"error_code": None, "error_message": None, **plan_row(index)} for index in rows
        ]
    assert shard_rows(tmp_path / layout.plan(1)) == [2, 2, 1]
    assert passed_schema(tmp_path / layout.plan(1)) == PASSED


def test_a_shard_may_come_in_many_batches_with_a_sort_key_that_is_left_out(tmp_path):
    schema = plan_schema(PASSED).append(pa.field("sort_key", pa.binary()))
    batches = [pa.RecordBatch.from_pylist([{**plan_row(index), "sort_key": b"k"}], schema) for index in range(5)]

    with PlanWriter(tmp_path / "plan.parquet", PASSED) as plan:
        assert plan.write_shard(batches) == 5
        plan.close()

    assert read_shard(tmp_path / "plan.parquet", 0).schema.names == plan_schema(PASSED).names
    assert shard_rows(tmp_path / "plan.parquet") == [5]


def test_an_unfinished_plan_leaves_no_file(tmp_path):
    def fail():
        with PlanWriter(tmp_path / "plan" / "plan.parquet", PASSED) as plan:
            plan.write_shard([pa.RecordBatch.from_pylist([plan_row(0)], plan_schema(PASSED))])
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert list((tmp_path / "plan").iterdir()) == []


def test_a_shard_that_the_plan_lacks_is_refused(tmp_path):
    make_job(tmp_path, range(4), shard_rows=2)

    with pytest.raises(FileDamaged, match="holds 2 shards and so no shard 2"):
        read_shard(tmp_path / layout.plan(1), 2)


def test_rows_of_a_part_of_a_shard_are_read_by_their_place_in_the_plan(tmp_path):
    job = make_job(tmp_path, range(7), shard_rows=3)

    found = read_rows(tmp_path / layout.plan(1), 1, 4, 6)

    assert found["row_index"].to_pylist() == list(job.shards[1][1:3])
    with pytest.raises(FileDamaged, match="shard 1 has the rows 3 to 6, not 4 to 7"):
        read_rows(tmp_path / layout.plan(1), 1, 4, 7)


def test_a_changed_plan_is_noticed(tmp_path):
    job = make_job(tmp_path, range(4), shard_rows=2)
    path = tmp_path / layout.plan(1)
    verify_plan(path, job.plan_sha256)

    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FileDamaged, match="was changed after submit"):
        verify_plan(path, job.plan_sha256)

    path.unlink()
    with pytest.raises(FileDamaged, match="is missing"):
        verify_plan(path, job.plan_sha256)


def test_a_damaged_page_of_the_plan_names_the_shard(tmp_path):
    make_job(tmp_path, range(400), shard_rows=200)
    path = tmp_path / layout.plan(1)
    content = bytearray(path.read_bytes())
    content[40:60] = bytes(20)
    path.write_bytes(content)

    with pytest.raises(FileDamaged, match="shard 0"):
        read_shard(path, 0)
    assert read_shard(path, 1).num_rows == 200
