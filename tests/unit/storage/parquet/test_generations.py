import json
import random

import pyarrow.parquet as pq
import pytest

from storage import layout
from storage.errors import Fenced, FileDamaged
from storage.output import sweep
from storage.parquet.generations import Generation, collect, collectable, listed_file
from storage.parquet.manifest import write_manifest
from storage.parquet.publisher import publish
from tests.unit.storage.parquet.samples import make_job, published_files

SMALL = {"part_bytes": 1000, "row_group_bytes": 300}
ORDER = random.Random(0).sample(range(40), 40)


@pytest.fixture
def job(tmp_path):
    """40 rows in several parts; every fifth has failed."""
    job = make_job(tmp_path / "out", ORDER, shard_rows=7)
    publish(job.out, job.publish_job(**SMALL), job.run())
    sweep(job.out)
    return job


def publish_again(job, rows, generation=2, base=1, **changes):
    again = job.again(rows, generation)
    published = publish(job.out, again.publish_job(base=Generation.load(job.out, base), **SMALL), again.run(**changes))
    sweep(job.out, generation)
    return published


def data(out):
    return {row["row_index"]: row for row in pq.read_table(out / layout.DATA).to_pylist()}


def manifest(out, generation):
    return json.loads((out / layout.manifest_generation(generation)).read_bytes())


def test_rows_that_ran_again_take_the_place_of_the_old_ones_and_all_others_stay(job):
    before, first = data(job.out), manifest(job.out, 1)
    metrics = pq.read_table(job.out / layout.METRICS)

    published = publish_again(job, [4, 39], status="succeeded", output_text="again", error_code=None)

    after = data(job.out)
    assert list(after) == list(range(40))
    assert [row for row in after if after[row] != before[row]] == [4, 39]
    assert (after[4]["status"], after[4]["output_text"], after[4]["score"]) == (
        "succeeded",
        "again",
        before[4]["score"],
    )
    assert published.counts == {"succeeded": 34, "errored": 6, "expired": 0, "canceled": 0}
    assert pq.read_table(job.out / layout.METRICS).drop(["attempts"]).equals(metrics.drop(["attempts"]))
    assert pq.read_table(job.out / layout.ERRORS)["custom_id"].to_pylist() == [f"id-{row}" for row in range(9, 39, 5)]
    second = manifest(job.out, 2)
    assert [part["path"] for part in second["parts"]] == [part["path"] for part in first["parts"]]
    same = [old["sha256"] == new["sha256"] for old, new in zip(first["parts"], second["parts"], strict=True)]
    assert same.count(False) == 2


def test_an_older_generation_is_readable_until_it_is_collected(job):
    first = published_files(job.out)
    publish_again(job, [4], status="succeeded")
    publish_again(job, [39], generation=3, base=2, status="succeeded")
    newest = published_files(job.out)

    for part in manifest(job.out, 1)["parts"]:
        assert listed_file(job.out, 1, part["path"]).read_bytes() == first[part["path"]]
    assert collectable(job.out, newest=1) == []
    old = {str(path.relative_to(job.out)) for path in collectable(job.out, newest=3)}
    collect(job.out, newest=3)

    assert old == {
        "_meta/manifest-0001.json",
        "_meta/manifest-0002.json",
        "_meta/superseded/0001",
        "_meta/superseded/0002",
    }
    left = published_files(job.out)
    assert left == {name: content for name, content in newest.items() if not any(map(name.startswith, old))}
    assert not (job.out / layout.SUPERSEDED).exists()


def test_all_samples_of_a_row_are_selected_together_by_status_or_finish_reason(job):
    generation = Generation.load(job.out, 1)

    failed = generation.select(frozenset({"errored"}), frozenset())
    stopped = generation.select(frozenset(), frozenset({"stop"}))
    every = generation.select(frozenset({"errored"}), frozenset({"stop"}))
    none = generation.select(frozenset({"expired"}), frozenset({"length"}))

    assert (failed.rows.tolist(), failed.kept) == (list(range(4, 40, 5)), {"succeeded": 32})
    assert (len(stopped.rows), stopped.kept) == (32, {"errored": 8})
    assert (len(every.rows), every.kept) == (40, {})
    assert (none.rows.tolist(), none.kept) == ([], {"succeeded": 32, "errored": 8})


def test_a_generation_is_not_built_on_what_was_changed(job):
    with pytest.raises(FileDamaged, match="was changed after it was published"):
        Generation.load(job.out, 1, "another sha256")
    with pytest.raises(FileDamaged, match="cannot be read"):
        Generation.load(job.out, 2)

    (job.out / layout.part(layout.DATA, 0)).write_bytes(b"changed")

    with pytest.raises(FileDamaged, match=r"part-00000\.parquet is missing or was changed"):
        publish_again(job, [4])


def test_a_publisher_that_slept_does_not_bring_an_old_generation_back(job):
    old = (job.out / layout.MANIFEST).read_bytes()
    publish_again(job, [4], status="succeeded")

    with pytest.raises(Fenced, match="holds generation 2 already"):
        write_manifest(job.out, 1, old)

    assert json.loads((job.out / layout.MANIFEST).read_bytes())["generation"] == 2


def test_whoever_sweeps_an_old_generation_leaves_the_work_of_a_new_one(job):
    again = job.again([4])
    again.run()

    sweep(job.out, 1)

    assert (job.out / layout.plan(2)).exists()
    sweep(job.out, 2)
    assert not (job.out / layout.work(2)).exists()
