import json
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import layout
from storage.durable import sha256_file
from storage.errors import InputInvalid
from storage.parquet.plan import PlanWriter
from storage.parquet.publisher import PublishJob, publish
from storage.parquet.reader import open_input
from storage.parquet.rows import LostRows
from storage.parquet.schema import RETRIED, check_names, data_schema, metrics_schema, plan_schema
from storage.parquet.writer import write_shard
from tests.unit.storage.parquet.samples import (
    PASSED,
    make_job,
    passed_values,
    plan_row,
    published_files,
    result_row,
    write_segments,
)

ORDER = random.Random(0).sample(range(40), 40)


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path / "out", ORDER, shard_rows=7)


def read(out, kind: str = "parts") -> pa.Table:
    manifest = json.loads((out / layout.MANIFEST).read_bytes())
    return pa.concat_tables([pq.read_table(out / part["path"]) for part in manifest[kind]])


def test_rows_are_published_in_input_order_with_all_their_values(job):
    published = publish(job.out, job.publish_job(), job.run())

    rows = read(job.out).to_pylist()
    assert [row["row_index"] for row in rows] == list(range(40))
    for row in rows:
        source = result_row(row["row_index"])
        assert {name: row[name] for name in PASSED.names} == passed_values(row["row_index"])
        assert (row["output_text"], row["status"]) == (source.output_text, source.status)
    assert published.rows == 40
    assert published.counts == {"succeeded": 32, "errored": 8, "expired": 0, "canceled": 0}


def test_the_parts_have_the_declared_schemas_and_the_inputs_columns_first(job):
    publish(job.out, job.publish_job(), job.run())

    assert read(job.out).schema.equals(data_schema(PASSED))
    assert read(job.out).schema.names[:4] == [*PASSED.names, "custom_id"]
    assert read(job.out, "metrics").schema.equals(metrics_schema())
    footer = pq.read_metadata(job.out / layout.part(layout.DATA, 0)).metadata
    assert {key: value for key, value in footer.items() if key != b"ARROW:schema"} == {
        b"schema_version": b"1", b"model": b"tiny", b"model_revision": b"1",
    }  # fmt: skip


def test_metrics_have_the_same_key_as_the_data(job):
    publish(job.out, job.publish_job(), job.run())

    data, metrics = read(job.out), read(job.out, "metrics")
    assert data.select(["row_index", "sample_index"]).equals(metrics.select(["row_index", "sample_index"]))
    assert [row["groups"][0]["allocated"] for row in metrics.to_pylist()] == list(range(40))


def test_the_manifest_says_what_is_there(job):
    published = publish(job.out, job.publish_job(part_bytes=1000, row_group_bytes=300), job.run())

    manifest = json.loads((job.out / layout.MANIFEST).read_bytes())
    assert published.manifest_sha256 == sha256_file(job.out / layout.MANIFEST)
    assert (job.out / layout.manifest_generation(1)).read_bytes() == (job.out / layout.MANIFEST).read_bytes()
    assert len(manifest["parts"]) > 3
    assert tuple(part["path"] for part in manifest["parts"]) == published.parts
    for part in [*manifest["parts"], *manifest["metrics"], *manifest["errors"]]:
        path = job.out / part["path"]
        index = pq.read_table(path)["row_index"] if "row_index" in pq.read_schema(path).names else None
        assert (part["bytes"], part["sha256"]) == (path.stat().st_size, sha256_file(path))
        assert part["rows"] == pq.read_metadata(path).num_rows
        if index is not None:
            assert (part["row_index_min"], part["row_index_max"]) == (index[0].as_py(), index[-1].as_py())
    assert manifest["counts"] == published.counts
    assert (manifest["rows"], manifest["plan_sha256"], manifest["generation"]) == (40, job.plan_sha256, 1)


def test_data_holds_the_manifests_parts_and_nothing_else(job):
    (job.out / layout.DATA).mkdir(parents=True)
    (job.out / layout.part(layout.DATA, 9)).write_bytes(b"left by a crash")

    published = publish(job.out, job.publish_job(part_bytes=1000, row_group_bytes=300), job.run())

    assert sorted(f"data/{path.name}" for path in (job.out / layout.DATA).iterdir()) == sorted(published.parts)


def test_equal_results_give_equal_bytes_however_they_were_cut_into_shards(tmp_path):
    outs = []
    for name, order, shard_rows, memory in (
        ("a", ORDER, 7, 1 << 20),
        ("b", range(40), 40, 20000),
        ("c", ORDER, 4, 5000),
    ):
        job = make_job(tmp_path / name, order, shard_rows)
        settings = job.publish_job(part_bytes=1000, row_group_bytes=300, memory_bytes=memory, epoch=len(name))
        publish(job.out, settings, job.run())
        outs.append({path: content for path, content in published_files(job.out).items() if path.startswith("data/")})

    assert len(outs[0]) > 3
    assert outs[0] == outs[1] == outs[2]


def test_what_a_run_has_to_say_of_its_cache_moves_no_part(tmp_path):
    outs = []
    for name, most in (("cold", 4), ("warm", 1)):
        job = make_job(tmp_path / name, range(40), shard_rows=40)
        limit = {"name": "sliding", "tokens": 1}
        rows = [result_row(index, limited_by=[limit] * (index % most)) for index in range(40)]
        segments = write_segments(job.out, 0, 1, rows)
        files = [write_shard(job.out, 0, 1, [segment.key for segment in segments])]
        publish(job.out, job.publish_job(part_bytes=1000, row_group_bytes=300), files)
        outs.append({path: content for path, content in published_files(job.out).items() if path.startswith("data/")})

    assert len(outs[0]) > 3
    assert outs[0] == outs[1]


def test_errors_can_be_submitted_again(job):
    publish(job.out, job.publish_job(), job.run())

    errors = read(job.out, "errors")
    assert errors.schema.names == ["custom_id", *PASSED.names, "seed", "error_code", "error_message"]
    assert errors["custom_id"].to_pylist() == [f"id-{index}" for index in range(4, 40, 5)]
    again = open_input([str(job.out / layout.ERRORS)])
    assert again.num_rows == 8
    assert set(again.schema.names) - RETRIED == {"custom_id", "seed", *PASSED.names}


def test_a_row_whose_samples_all_failed_is_one_row_to_submit_again(tmp_path):
    job = make_job(tmp_path, [0, 1], shard_rows=2)
    rows = [result_row(index, sample, status="errored") for index in (0, 1) for sample in range(3)]
    segments = write_segments(tmp_path, 0, 1, rows)

    settings = job.publish_job(row_group_bytes=1)  # each row in a row group of its own
    publish(tmp_path, settings, [write_shard(tmp_path, 0, 1, [segment.key for segment in segments])])

    assert read(tmp_path, "errors")["custom_id"].to_pylist() == ["id-0", "id-1"]


def test_without_errors_there_is_no_errors_folder(tmp_path):
    job = make_job(tmp_path, [0, 1, 2], shard_rows=3)

    publish(tmp_path, job.publish_job(), job.run())

    assert not (tmp_path / layout.ERRORS).exists()
    assert json.loads((tmp_path / layout.MANIFEST).read_bytes())["errors"] == []


def test_rows_of_a_shard_that_was_given_up_are_errored_rows_with_their_input(job):
    files = [job.run_shard(idx) for idx in range(len(job.shards)) if idx != 2]
    lost = LostRows(row_lo=14, row_hi=21, status="errored", code="engine_killer", message="crashed 5 workers")

    published = publish(job.out, job.publish_job(), files, [lost])

    dead = [row for row in read(job.out).to_pylist() if row["error_code"] == "engine_killer"]
    assert sorted({row["row_index"] for row in dead}) == sorted(job.shards[2])
    for row in dead:
        assert row["error_message"] == "crashed 5 workers"
        assert row["seed"] == row["row_index"] * 3
        assert {name: row[name] for name in PASSED.names} == passed_values(row["row_index"])
        assert row["output_text"] is None
    assert published.rows == 40 + sum(index % 10 == 7 for index in job.shards[2])  # these want two samples


def test_rows_that_never_ran_are_canceled_for_every_sample(tmp_path):
    job = make_job(tmp_path, [7, 0, 1, 2, 3, 4, 5, 6], shard_rows=4)
    lost = LostRows(row_lo=0, row_hi=8, status="canceled", code="canceled", message="the job was cancelled")

    published = publish(tmp_path, job.publish_job(num_samples=3), [], [lost])

    keys = [(row["row_index"], row["sample_index"]) for row in read(tmp_path).to_pylist()]
    assert keys == [*((index, sample) for index in range(7) for sample in range(3)), (7, 0), (7, 1)]
    assert published.counts["canceled"] == 23


def test_a_lost_row_that_submit_refused_keeps_its_reason_and_is_one_row(tmp_path):
    schema = plan_schema(PASSED)
    refused = {"prompt_token_ids": None, "error_code": "context_length", "error_message": "too long"}
    with PlanWriter(tmp_path / layout.PLAN, PASSED) as plan:
        rows = [plan_row(0), {**plan_row(1), **refused}]
        plan.write_shard([pa.RecordBatch.from_pylist(rows, schema)])
        sha256 = plan.close()
    lost = LostRows(row_lo=0, row_hi=2, status="errored", code="engine_killer", message="crashed")

    job = PublishJob(name="sample", epoch=1, plan_sha256=sha256, num_samples=2)
    publish(tmp_path, job, [], [lost])

    assert [(row["row_index"], row["sample_index"], row["error_code"]) for row in read(tmp_path).to_pylist()] == [
        (0, 0, "engine_killer"), (0, 1, "engine_killer"), (1, 0, "context_length"),
    ]  # fmt: skip


def test_rows_that_a_lost_shard_had_finished_are_kept(job):
    files = [job.run_shard(idx) for idx in range(len(job.shards)) if idx != 1]
    finished = job.shards[1][:3]
    files += write_segments(job.out, 1, 4, [result_row(index) for index in finished])
    lost = LostRows(row_lo=7, row_hi=14, status="canceled", code="canceled", message="the job was cancelled")

    publish(job.out, job.publish_job(), files, [lost])

    canceled = {row["row_index"] for row in read(job.out).to_pylist() if row["status"] == "canceled"}
    assert canceled == set(job.shards[1][3:]) | {index for index in finished if index % 10 == 7}


def test_a_publisher_that_lost_its_lease_makes_nothing_visible(job):
    class Lost(Exception): ...

    beats = 0

    def count():
        nonlocal beats
        beats += 1

    publish(job.out, job.publish_job(), job.run(), beat=count)
    other = make_job(job.out.parent / "other", ORDER, 7)
    files = other.run()

    def lose():
        nonlocal beats
        beats -= 1
        if beats == 1:  # the last one comes when the parts are in place and the manifest is not
            raise Lost

    with pytest.raises(Lost):
        publish(other.out, other.publish_job(), files, beat=lose)

    assert published_files(other.out) == {}
    assert not (other.out / layout.publish_folder(1)).exists()


def test_publishing_again_after_success_changes_nothing(job):
    files = job.run()
    first = publish(job.out, job.publish_job(), files)
    before = {path: os.stat(job.out / path).st_mtime_ns for path in published_files(job.out)}

    second = publish(job.out, job.publish_job(epoch=2), files)

    assert second == first
    assert {path: os.stat(job.out / path).st_mtime_ns for path in published_files(job.out)} == before


def test_a_published_part_that_was_damaged_is_published_again(job):
    files = job.run()
    first = publish(job.out, job.publish_job(), files)
    wanted = published_files(job.out)
    (job.out / first.parts[0]).write_bytes(b"damaged")

    assert publish(job.out, job.publish_job(epoch=2), files) == first
    assert published_files(job.out) == wanted


@pytest.mark.parametrize("name", ["status", "Output_Text", "row_index"])
def test_an_input_column_with_the_name_of_an_output_column_is_refused(name):
    with pytest.raises(InputInvalid) as caught:
        check_names(pa.schema([("prompt", pa.string()), (name, pa.string())]))

    assert caught.value.code == "name_clash"
    assert name in str(caught.value)
