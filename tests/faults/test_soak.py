"""Row 52: everything at once, at random; and row 41, a cancel at a random moment."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from storage.states import JobState
from tests.faults.harness import Harness, keys, prompts, speed
from tests.faults.soak import Soak

pytestmark = pytest.mark.integration


def soak(folder: Path, *, seed: int, seconds: float, shards: int, workers: int, rows: int, pause: float) -> Soak:
    print(f"seed {seed}")
    # it costs the job more workers and files than any job may cost
    most = {"max_shard_attempts": 1000, "max_job_crashes": 10_000, "max_shard_reopenings": 100}
    with Harness.create(folder, **most, worker_slots=4) as harness:
        job = harness.submit(prompts(shards * 4), shard_rows=4)
        run = Soak(harness, job.id, seed, workers, rows)

        run.run(seconds, pause)

        harness.done(job.id, shards * 4, seconds=4 * seconds + 120)
    print(run.faults)
    return run


def test_52_twenty_seconds_of_random_faults(tmp_path: Path) -> None:
    run = soak(tmp_path, seed=52, seconds=20, shards=120, workers=2, rows=12, pause=2.0)

    assert len(run.faults) > 3


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_52_ten_minutes_of_random_faults(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)

    run = soak(tmp_path, seed=seed, seconds=600, shards=1000, workers=4, rows=2, pause=4.0)

    assert len(run.faults) > 60


def cancels(harness: Harness, times: int, seed: int) -> None:
    """One worker serves them all; each job is cancelled after a random number of its rows."""
    dice = random.Random(seed)
    harness.start_worker("w0", **speed(120))
    for number in range(times):
        job = harness.submit(prompts(48), shard_rows=12, name=f"out{number}")
        harness.wait_for_rows(job.id, dice.choice([0, 0, 8, 16, 24, 32, 40]))

        harness.repository.request_cancel(job.id)
        ended = harness.wait_for_end(job.id)

        table = harness.check(job.id, keys(48))
        assert ended.state in {JobState.CANCELLED, JobState.COMPLETED}, f"seed {seed}, number {number}"
        canceled = table["status"].to_pylist().count("canceled")
        assert canceled == ended.rows_canceled
        assert ended.state is JobState.CANCELLED or canceled == 0


def test_41_five_cancels_at_random_moments(harness: Harness) -> None:
    cancels(harness, 5, seed=41)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_41_a_hundred_cancels_at_random_moments(harness: Harness) -> None:
    cancels(harness, 100, seed=random.SystemRandom().randrange(2**32))
