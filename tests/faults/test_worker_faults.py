"""Workers that die, stop, freeze or lose their engine: nothing is lost, nothing comes twice, and the sums add up."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from engine.request import SamplingParams
from storage.states import JobState, ShardState
from tests.fakes import SPACE, fake_ids
from tests.faults.harness import MAX_TOKENS, Harness, prompts, wait_for

pytestmark = pytest.mark.integration

PROMPTS = [f"prompt number {i}" for i in range(120)]
KEYS = {(i, 0) for i in range(120)}
STOP_SECONDS = 5.0
SLOW = {"FAKE_ENGINE_ROWS_PER_SECOND": "30"}


def test_01_two_workers_share_a_job_and_one_is_killed_in_the_middle_of_a_shard(harness_on_postgres: Harness) -> None:
    harness = harness_on_postgres
    first, second = harness.start_worker("w0", **SLOW), harness.start_worker("w1", **SLOW)
    wait_for(lambda: len(harness.repository.workers(2.0)) == 2, "both workers live")
    job = harness.submit(PROMPTS, shard_rows=24)
    owners = {first.name: 0, second.name: 0}

    def both_work() -> bool:
        for shard in harness.repository.shards(job.id):
            if shard.state is ShardState.RUNNING and shard.lease_owner:
                owners[shard.lease_owner.partition("@")[0]] += 1
        return all(owners.values()) and harness.job(job.id).rows_done >= 16

    wait_for(both_work, "both workers run a shard")

    first.kill()

    ended = harness.wait_for_end(job.id)
    assert ended.state is JobState.COMPLETED
    harness.check(job.id, KEYS)
    assert sum(shard.crashes for shard in harness.repository.shards(job.id)) >= 1


def test_32_a_worker_that_is_told_to_stop_seals_its_rows_and_gives_its_shards_back_in_time(harness: Harness) -> None:
    worker = harness.start_worker("w0", **SLOW)
    job = harness.submit(PROMPTS, shard_rows=60)
    harness.wait_for_rows(job.id, 8)

    code = worker.terminate(STOP_SECONDS)

    assert code == 0
    shards = harness.repository.shards(job.id)
    assert all(shard.state is not ShardState.RUNNING for shard in shards)
    assert sum(shard.preemptions for shard in shards) >= 1
    assert sum(shard.crashes for shard in shards) == 0
    sealed = sum(segment.rows for shard in shards for segment in harness.repository.segments(shard.id))
    assert harness.job(job.id).rows_done == sealed >= 8

    harness.start_worker("w1")
    assert harness.wait_for_end(job.id).state is JobState.COMPLETED
    harness.check(job.id, KEYS)


@pytest.mark.slow
def test_32_workers_that_are_told_to_stop_at_random_moments(harness: Harness) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    job = harness.submit(prompts(360), shard_rows=24)
    for number in range(20):
        worker = harness.start_worker(f"w{number}", **SLOW)
        harness.wait_for_rows(job.id, harness.job(job.id).rows_done + dice.randint(0, 16))
        wait_for(lambda worker=worker: "ready." in worker.text, "the worker hears of signals")

        assert worker.terminate(STOP_SECONDS) == 0, f"seed {seed}, number {number}"

        assert all(shard.state is not ShardState.RUNNING for shard in harness.shards(job.id))
    harness.start_worker("last")
    harness.done(job.id, 360, seconds=280)
    assert sum(shard.crashes + shard.failures for shard in harness.shards(job.id)) == 0


def test_03_a_worker_that_sleeps_past_its_lease_is_fenced_and_leaves_no_file(harness: Harness) -> None:
    zombie = harness.start_worker("w0", **SLOW)
    job = harness.submit(PROMPTS, shard_rows=120)
    harness.wait_for_rows(job.id, 8)

    harness.put_to_sleep(zombie)
    harness.start_worker("w1", **SLOW)
    wait_for(lambda: harness.repository.shards(job.id)[0].epoch >= 2, "the shard is claimed again")
    os.kill(zombie.process.pid, signal.SIGCONT)

    assert harness.wait_for_end(job.id).state is JobState.COMPLETED
    harness.check(job.id, KEYS)
    wait_for(lambda: "fenced" in zombie.text, "the zombie learns that it lost its shard")
    assert zombie.process.poll() is None


def test_01_a_worker_that_starts_again_takes_up_at_once_what_it_held_when_it_was_killed(tmp_path: Path) -> None:
    with Harness.create(tmp_path, lease_seconds=600.0) as harness:
        worker = harness.start_worker("w0", **SLOW)
        job = harness.submit(PROMPTS, shard_rows=60)
        harness.wait_for_rows(job.id, 8)
        worker.kill()

        harness.start_worker("w0")

        assert harness.wait_for_end(job.id).state is JobState.COMPLETED
        harness.check(job.id, KEYS)
        assert sum(shard.crashes for shard in harness.repository.shards(job.id)) >= 1


def test_a_worker_whose_engine_dies_leaves_with_70_and_its_shard_is_tried_again(harness: Harness) -> None:
    prompts = [*PROMPTS[:30], "DIEDIE"]
    broken = harness.start_worker("w0", FAKE_ENGINE_DIE="DIEDIE")
    job = harness.submit(prompts, shard_rows=40)

    assert broken.process.wait(30) == 70

    harness.start_worker("w1")
    assert harness.wait_for_end(job.id).state is JobState.COMPLETED
    harness.check(job.id, {(i, 0) for i in range(31)})


def test_41_a_cancelled_job_is_published_with_what_was_finished(harness: Harness) -> None:
    harness.start_worker("w0", **SLOW)
    job = harness.submit(PROMPTS, shard_rows=24)
    harness.wait_for_rows(job.id, 8)

    harness.repository.request_cancel(job.id)

    ended = harness.wait_for_end(job.id)
    assert ended.state is JobState.CANCELLED
    table = harness.check(job.id, KEYS)
    statuses = table["status"].to_pylist()
    assert statuses.count("succeeded") >= 8
    assert statuses.count("canceled") > 0


def test_every_sample_of_every_row_is_its_own(harness: Harness) -> None:
    harness.start_worker("w0")
    job = harness.submit(PROMPTS[:20], n=3)

    assert harness.wait_for_end(job.id).state is JobState.COMPLETED

    table = harness.check(job.id, {(i, k) for i in range(20) for k in range(3)})
    for row in table.select(["prompt", "sample_index", "seed", "output_text", "completion_tokens"]).to_pylist():
        ids = _expected_ids(row["prompt"], row["seed"], row["sample_index"])
        assert row["output_text"] == "".join(chr(97 + token - 64) for token in ids)
        assert row["completion_tokens"] == len(ids)


def _expected_ids(prompt: str, seed: int, sample_index: int) -> tuple[int, ...]:
    """What the fake engine makes of a prompt of printable ASCII."""
    prompt_ids = [SPACE if letter == " " else ord(letter) - 33 for letter in prompt]
    return fake_ids(prompt_ids, SamplingParams(max_tokens=MAX_TOKENS, seed=seed), sample_index)
