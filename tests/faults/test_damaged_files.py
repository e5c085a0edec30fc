"""Rows 25 to 27: files of finished rows that are cut, garbled, lost or rotten before the job is published."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.records import Job, Shard
from storage.states import JobState, ShardState
from tests.faults.harness import Harness, prompts, speed, wait_for

pytestmark = pytest.mark.integration


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 9)


def garble(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        file.write(b"\xff" * 20)


def flip(path: Path) -> None:
    """One bit, somewhere in the values."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 3)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("damage", [cut, pytest.param(garble, marks=pytest.mark.slow)])
def test_25_a_sealed_segment_with_a_damaged_tail(harness: Harness, damage: Callable[[Path], None]) -> None:
    harness.start_worker("w0", **speed(20))
    job = harness.submit(prompts(24), shard_rows=24)
    harness.wait_for_rows(job.id, 8)
    harness.repository.pause_job(job.id)
    wait_for(lambda: harness.shards(job.id)[0].state is ShardState.READY, "the shard is given back")
    [shard] = harness.shards(job.id)
    sealed = harness.repository.segments(shard.id)
    damage(Path(job.output_uri) / sealed[-1].key)

    harness.repository.resume_job(job.id)

    harness.done(job.id, 24)
    assert {each.epoch for each in harness.repository.segments(shard.id)} == {2}


def test_26_and_27_committed_shards_whose_files_are_lost_or_rot_before_they_are_published(harness: Harness) -> None:
    harness.start_worker("w0", **speed(20))
    job = harness.submit(prompts(48), shard_rows=16)

    lost = committed(harness, job, 1)
    for key in (lost.out_key, *(each.key for each in harness.repository.segments(lost.id))):
        (Path(job.output_uri) / str(key)).unlink()
    rotten = committed(harness, job, 2)
    flip(Path(job.output_uri) / str(rotten.out_key))

    harness.done(job.id, 48)
    again = {shard.id: (shard.reopenings, shard.epoch) for shard in harness.shards(job.id)}
    assert again[lost.id] == again[rotten.id] == (1, 2)


@pytest.mark.slow
def test_27_a_disk_that_rots_too_often_fails_the_job_by_name(tmp_path: Path) -> None:
    with Harness.create(tmp_path, max_shard_reopenings=0) as harness:
        harness.start_worker("w0", **speed(20))
        job = harness.submit(prompts(32), shard_rows=16)
        shard = committed(harness, job, 1)
        flip(Path(job.output_uri) / str(shard.out_key))

        ended = harness.wait_for_end(job.id)

        assert (ended.state, ended.published_generation) == (JobState.FAILED, 0)
        assert str(shard.out_key) in str(ended.error)
        assert "look at the disk" in str(ended.error)


def committed(harness: Harness, job: Job, number: int) -> Shard:
    """Wait for the first or second shard; another one is still running."""
    wait_for(lambda: harness.job(job.id).shards_done >= number, f"{number} shards are committed")
    shards = harness.shards(job.id)
    assert any(shard.state is not ShardState.DONE for shard in shards)
    return [shard for shard in shards if shard.out_key][number - 1]
