"""Rows 1, 2, 4, 5, 33, 47 and 48: processes that die or sleep anywhere."""

from __future__ import annotations

import random
import signal
import time
from itertools import count
from pathlib import Path

import pytest

from storage.states import JobState, ShardState
from tests.faults.harness import Harness, is_stopped, prompts, speed, wait_for

pytestmark = pytest.mark.integration

WORKER_POINTS = (
    *("claim.before", "claim.after", "segment.before_fsync", "segment.after_fsync", "segment.before_row"),
    *("segment.after_row", "commit.before_fsync", "commit.after_fsync", "rename.before", "rename.after@2"),
    *("commit.before_sql", "commit.after_sql"),
)
PUBLISHING_POINTS = (
    *("publish.before_parts", "publish.after_parts", "publish.before_manifest", "publish.after_manifest"),
    *("publish.before_sql", "publish.after_sql"),
)


def kill_at_random(harness: Harness, kills: int, seed: int) -> None:
    """Workers one after another, each killed at some row; under its old name it takes up its shards at once."""
    dice = random.Random(seed)
    rows = 24 * kills
    job = harness.submit(prompts(rows), shard_rows=12)
    for number in range(kills):
        worker = harness.start_worker(dice.choice(["w0", f"w{number}"]), **speed(60))
        goal = harness.job(job.id).rows_done + dice.randint(1, 16)
        wait_for(lambda goal=goal: harness.job(job.id).rows_done >= goal, f"row {goal}, seed {seed}")
        worker.kill()
    harness.start_worker("last")

    harness.done(job.id, rows, seconds=90 + 10 * kills)  # each kill costs a start and a lease

    shards = harness.shards(job.id)
    assert sum(shard.crashes for shard in shards) >= kills
    assert {shard.state for shard in shards} <= {ShardState.DONE, ShardState.SPLIT}
    assert harness.job(job.id).rows_succeeded == rows


def test_01_a_worker_killed_at_random_rows(tmp_path: Path) -> None:
    with Harness.create(tmp_path, max_shard_attempts=50) as harness:
        kill_at_random(harness, kills=3, seed=1)


@pytest.mark.slow
def test_01_a_worker_killed_twenty_times_at_random_rows(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    with Harness.create(tmp_path, max_shard_attempts=50) as harness:
        kill_at_random(harness, kills=20, seed=seed)


def test_02_a_worker_killed_before_and_after_every_step(tmp_path: Path) -> None:
    names = count()
    with Harness.create(tmp_path, max_shard_attempts=50) as harness:
        job = harness.submit(prompts(240), shard_rows=8)

        for points in pairs(WORKER_POINTS):
            dying = [harness.start_worker(f"w{next(names)}", NIGHTMILL_FAILPOINTS=f"{_at(point)}") for point in points]
            for worker in dying:
                assert worker.process.wait(30) == -signal.SIGKILL
            assert harness.job(job.id).state in {JobState.QUEUED, JobState.IN_PROGRESS}
        harness.start_worker("last")

        harness.done(job.id, 240, seconds=120)


def test_02_and_48_a_reconciler_killed_before_and_after_every_step_of_publishing(tmp_path: Path) -> None:
    with Harness.create(tmp_path) as harness:
        harness.stop_reconciler()
        job = harness.submit(prompts(16), shard_rows=16)
        harness.start_worker("w0")
        killed = harness.start_reconciler_process("r", NIGHTMILL_FAILPOINTS="dispatch.after_sql:kill")
        assert killed.process.wait(30) == -signal.SIGKILL  # the hint it had promised comes when it is stale
        manifests = set()

        for point in PUBLISHING_POINTS:
            killed = harness.start_reconciler_process("r", NIGHTMILL_FAILPOINTS=f"{point}:kill")
            assert killed.process.wait(30) == -signal.SIGKILL, point
            manifest = Path(job.output_uri) / "manifest.json"
            manifests |= {manifest.read_bytes()} if manifest.exists() else set()
        harness.start_reconciler_process("r")

        harness.done(job.id, 16, seconds=120)
        assert manifests == {manifest.read_bytes()}


def test_04_a_worker_that_sleeps_between_its_file_and_the_commit(harness: Harness) -> None:
    zombie = harness.start_worker("w0", NIGHTMILL_FAILPOINTS="commit.before_sql:stop")
    job = harness.submit(prompts(16), shard_rows=16)
    wait_for(lambda: is_stopped(zombie.process.pid), "the worker sleeps")

    harness.start_worker("w1")
    wait_for(lambda: harness.shards(job.id)[0].epoch >= 2, "the shard is claimed again")
    zombie.process.send_signal(signal.SIGCONT)

    harness.done(job.id, 16)
    wait_for(lambda: "fenced" in zombie.text, "the sleeper learns that it is too late")
    assert zombie.process.poll() is None


def test_05_a_worker_killed_between_its_hint_and_the_claim(harness: Harness) -> None:
    killed = harness.start_worker("w0", NIGHTMILL_FAILPOINTS="claim.before:kill")
    job = harness.submit(prompts(16), shard_rows=16)
    assert killed.process.wait(30) == -signal.SIGKILL
    assert harness.shards(job.id)[0].state is ShardState.QUEUED

    harness.start_worker("w1")
    lost_at = time.monotonic()

    harness.done(job.id, 16)
    assert time.monotonic() - lost_at < harness.settings.hint_stale_seconds + 8
    assert [(shard.attempts, shard.crashes) for shard in harness.shards(job.id)] == [(1, 0)]


def test_33_a_worker_that_gets_no_time_to_stop(harness: Harness) -> None:
    worker = harness.start_worker("w0", **speed(30))
    job = harness.submit(prompts(96), shard_rows=48)
    harness.wait_for_rows(job.id, 8)

    worker.process.send_signal(signal.SIGTERM)
    worker.kill()
    harness.start_worker("w1")

    harness.done(job.id, 96)


def test_47_two_reconcilers_of_which_one_sleeps_while_it_publishes(tmp_path: Path) -> None:
    with Harness.create(tmp_path) as harness:
        harness.stop_reconciler()
        job = harness.submit(prompts(32), shard_rows=16)
        sleeper = harness.start_reconciler_process("r0", NIGHTMILL_FAILPOINTS="publish.before_parts:stop")
        harness.start_worker("w0")
        wait_for(lambda: is_stopped(sleeper.process.pid), "the first reconciler sleeps")

        harness.start_reconciler_process("r1")
        harness.done(job.id, 32)
        sleeper.process.send_signal(signal.SIGCONT)

        second = harness.submit(prompts(16), shard_rows=16, name="second")
        harness.done(second.id, 16)
        harness.check(job.id, {(i, 0) for i in range(32)})
        assert sleeper.process.poll() is None, sleeper.text


def pairs(points: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [points[i : i + 2] for i in range(0, len(points), 2)]


def _at(point: str) -> str:
    name, _, times = point.partition("@")
    return f"{name}:kill@{times or 1}"
