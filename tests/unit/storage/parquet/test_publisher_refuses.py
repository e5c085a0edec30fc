"""What is damaged or incomplete is not published, and the message names the shard or row."""

import random
from dataclasses import replace

import pytest

from storage.errors import Fenced, FileDamaged
from storage.parquet import publisher
from storage.parquet.damage import FilesDamaged
from storage.parquet.publisher import publish
from storage.parquet.sealed import read_sealed
from tests.unit.storage.parquet.samples import make_job, published_files

ORDER = random.Random(1).sample(range(40), 40)


@pytest.fixture
def job(tmp_path):
    return make_job(tmp_path / "out", ORDER, shard_rows=7)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has sha256"),
        (lambda path: path.write_bytes(b"\0" + path.read_bytes()[1:]), "has sha256"),
    ],
    ids=["missing", "cut", "changed"],
)
def test_damaged_shard_files_are_all_named_and_nothing_is_published(job, damage, words):
    files = job.run()
    damage(job.out / files[3].key)
    damage(job.out / files[1].key)

    with pytest.raises(FilesDamaged, match=words) as caught:
        publish(job.out, job.publish_job(), files)

    assert caught.value.files.keys() == {files[1].key, files[3].key}
    assert published_files(job.out) == {}


def test_a_file_that_rots_after_it_was_looked_at_is_named(job, monkeypatch):
    files = job.run()

    def rotting(path):
        if path.name.startswith("shard-00002"):
            path.write_bytes(path.read_bytes()[:-100])
        return read_sealed(path)

    monkeypatch.setattr(publisher, "read_sealed", rotting)

    with pytest.raises(FilesDamaged) as caught:
        publish(job.out, job.publish_job(), files)

    assert caught.value.files.keys() == {files[2].key}
    assert published_files(job.out) == {}


def test_a_publisher_that_slept_while_rows_ran_again_does_not_publish_the_old_ones(job):
    files = job.run()
    publish(job.out, job.publish_job(), files)
    again = publish(job.out, job.publish_job(reopenings=1, epoch=3), [*files[1:], job.run_shard(0, epoch=2)])
    manifest = published_files(job.out)["manifest.json"]

    with pytest.raises(Fenced, match="have run again since"):
        publish(job.out, job.publish_job(epoch=2), files)

    assert published_files(job.out)["manifest.json"] == manifest
    assert publish(job.out, job.publish_job(reopenings=1, epoch=4), files) == again


def test_a_wrong_row_count_is_damage(job):
    files = job.run()
    files[0] = replace(files[0], rows=6)

    with pytest.raises(FilesDamaged, match="has 7 rows, not the recorded 6"):
        publish(job.out, job.publish_job(), files)


@pytest.mark.parametrize("missing", [0, 2, 5])
def test_a_job_with_a_row_that_nobody_has_is_not_published(job, missing):
    files = job.run()
    del files[missing]

    with pytest.raises(FileDamaged, match=f"row {min(job.shards[missing])} has neither"):
        publish(job.out, job.publish_job(), files)

    assert published_files(job.out) == {}


def test_a_job_without_its_last_row_is_not_published(tmp_path):
    job = make_job(tmp_path, range(6), shard_rows=3)

    with pytest.raises(FileDamaged, match="end with row 2 where the plan ends with row 5"):
        publish(tmp_path, job.publish_job(), [job.run_shard(0)])


def test_a_changed_plan_is_not_published(job):
    with pytest.raises(FileDamaged, match="changed after submit"):
        publish(job.out, job.publish_job(plan_sha256="0" * 64), job.run())
