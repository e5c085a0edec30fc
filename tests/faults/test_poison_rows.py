"""Rows that kill the process that runs them: each is found, and nothing else is lost."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pytest

from storage.records import JobId
from storage.states import JOB_FINAL, JobState, ShardState
from tests.faults.checker import check_job
from tests.faults.harness import Harness, wait_for

pytestmark = pytest.mark.integration

POISON = {"FAKE_ENGINE_KILL": "KILLKILL", "FAKE_ENGINE_ROWS_PER_SECOND": "100"}


def work_to_the_end(harness: Harness, job_id: JobId, most_deaths: int) -> int:
    """Start a worker again each time that one dies, as a supervisor does; how many died."""

    def is_over() -> bool:
        return worker.process.poll() is not None or harness.job(job_id).state in JOB_FINAL

    for deaths in range(most_deaths + 1):
        worker = harness.start_worker("w0", **POISON)
        wait_for(is_over, "the worker dies or the job ends")
        if harness.job(job_id).state in JOB_FINAL:
            return deaths
    raise AssertionError(f"{most_deaths + 1} workers died\n{worker.text[-4000:]}")


def errors(table: pa.Table) -> dict[str, str]:
    return {row["prompt"]: row["error_code"] for row in table.to_pylist() if row["status"] == "errored"}


def keys(count: int) -> set[tuple[int, int]]:
    return {(index, 0) for index in range(count)}


@pytest.mark.parametrize("place", [0, 131, 255])
def test_38_one_row_of_256_that_kills_its_worker_is_found_and_all_others_are_done(tmp_path: Path, place: int) -> None:
    prompts = [f"prompt number {index}" for index in range(256)]
    prompts[place] = "KILLKILL"
    # Nothing is sealed before its time, so that no row is known to be innocent by luck.
    with Harness.create(tmp_path, segment_seconds=600.0, segment_rows=10_000) as harness:
        job = harness.submit(prompts, shard_rows=256)

        deaths = work_to_the_end(harness, job.id, int(2 + math.log2(256)))

        assert harness.job(job.id).state is JobState.COMPLETED
        table = check_job(harness.repository, job.id, keys(256))
        assert errors(table) == {"KILLKILL": "engine_killer"}
        assert deaths > 2
        dead = [shard for shard in harness.repository.shards(job.id) if shard.state is ShardState.DEAD]
        assert [shard.row_hi - shard.row_lo for shard in dead] == [1]


def test_39_three_rows_in_two_shards_kill_their_worker_and_the_shards_beside_them_live(tmp_path: Path) -> None:
    prompts = [f"prompt number {index:02}" for index in range(96)]
    for place in (28, 31, 40):  # in plan order too, as the prompts are sorted
        prompts[place] += " KILLKILL"
    with Harness.create(tmp_path, max_sequences=64) as harness:
        job = harness.submit(prompts, shard_rows=16)

        work_to_the_end(harness, job.id, 3 * int(2 + math.log2(16)))

        assert harness.job(job.id).state is JobState.COMPLETED
        table = check_job(harness.repository, job.id, keys(96))
        assert errors(table) == {prompts[place]: "engine_killer" for place in (28, 31, 40)}
        roots = [shard for shard in harness.repository.shards(job.id) if shard.parent_id is None]
        assert sum(shard.state is ShardState.SPLIT for shard in roots) == 2
        innocent = [shard for shard in roots if shard.state is ShardState.DONE]
        assert len(innocent) == len(roots) - 2
        assert max(shard.crashes for shard in innocent) > 0, "no shard ran beside the rows that kill"


def test_finished_rows_of_a_split_shard_are_not_computed_again(tmp_path: Path) -> None:
    prompts = [*(f"prompt number {index}" for index in range(63)), "KILLKILL"]
    with Harness.create(tmp_path) as harness:
        job = harness.submit(prompts, shard_rows=64)

        work_to_the_end(harness, job.id, int(2 + math.log2(64)))

        check_job(harness.repository, job.id, keys(64))
        shards = harness.repository.shards(job.id)
        assert sum(segment.rows for shard in shards for segment in harness.repository.segments(shard.id)) == 63


def test_a_job_that_kills_too_many_workers_fails_with_its_finished_rows_published(tmp_path: Path) -> None:
    prompts = [*(f"prompt number {index}" for index in range(32)), *["KILLKILL"] * 32]
    with Harness.create(tmp_path, max_job_crashes=4) as harness:
        job = harness.submit(prompts, shard_rows=32)

        deaths = work_to_the_end(harness, job.id, 5)

        ended = harness.job(job.id)
        assert ended.state is JobState.FAILED
        assert deaths in (4, 5)  # the next worker may be faster than the count
        assert "workers died 4 times" in (ended.error or "")
        table = check_job(harness.repository, job.id, keys(64))
        statuses = table["status"].to_pylist()
        assert statuses[:32] == ["succeeded"] * 32
        assert set(statuses[32:]) == {"canceled"}
