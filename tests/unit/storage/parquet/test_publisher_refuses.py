"""What is damaged or incomplete is not published, and the message names the shard or row."""

import random
from dataclasses import replace

import pytest

from storage.errors import FileDamaged
from storage.parquet.publisher import ShardDamaged, publish
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
def test_a_damaged_shard_file_names_its_shard_and_publishes_nothing(job, damage, words):
    files = job.run()
    damage(job.out / files[3].key)

    with pytest.raises(ShardDamaged, match=words) as caught:
        publish(job.out, job.publish_job(), files)

    assert caught.value.shard_idx == 3
    assert published_files(job.out) == {}


def test_a_wrong_row_count_names_the_shard(job):
    files = job.run()
    files[0] = replace(files[0], rows=6)

    with pytest.raises(ShardDamaged, match="has 7 rows, not the recorded 6"):
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
