"""How a worker is asked to stop, in every way there is, and what it does when its tasks or its disk give up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.app import NightmillApp, make_app
from jobs.restarts import EXIT_ENGINE_DEAD
from jobs.supervisor import worker_environment
from storage.states import JobState, ShardState
from tests.faults.harness import ROOT, Harness, WorkerProcess, prompts, speed, wait_for

pytestmark = pytest.mark.integration

ROWS = 90
STOP_SECONDS = 5.0


def app_of(harness: Harness) -> NightmillApp:
    return make_app(harness.broker.url, prefix=harness.settings.redis_prefix)


def at_work(harness: Harness) -> tuple[WorkerProcess, int]:
    """A slow worker in the middle of a job of three shards; the job's id."""
    worker = harness.start_worker("w0", **speed(30))
    job = harness.submit(prompts(ROWS), shard_rows=30)
    harness.wait_for_rows(job.id, 8)
    return worker, job.id


def is_told_to_quit(harness: Harness, worker: WorkerProcess) -> None:
    worker.process.send_signal(signal.SIGQUIT)


def is_told_to_end_many_times(harness: Harness, worker: WorkerProcess) -> None:
    """As by a parent that is killed: each of its threads sends a signal."""
    for number in range(400):
        worker.process.send_signal(signal.SIGTERM)
        time.sleep(number % 20 * 1e-6)


def is_shut_down_by_remote_control(harness: Harness, worker: WorkerProcess) -> None:
    app_of(harness).control.shutdown()


@pytest.mark.parametrize("stop", [is_told_to_quit, is_told_to_end_many_times, is_shut_down_by_remote_control])
def test_34_a_worker_that_is_asked_to_stop_gives_its_shards_back_in_time(
    harness: Harness, stop: Callable[[Harness, WorkerProcess], None]
) -> None:
    worker, job_id = at_work(harness)

    stop(harness, worker)
    worker.process.wait(harness.settings.stop_seconds + STOP_SECONDS)

    shards = harness.shards(job_id)
    assert all(shard.state is not ShardState.RUNNING for shard in shards)
    assert sum(shard.preemptions for shard in shards) >= 1
    assert sum(shard.crashes + shard.failures for shard in shards) == 0
    harness.start_worker("w1")
    harness.done(job_id, ROWS)


def test_32_a_worker_whose_engine_does_not_come_to_its_end_gives_its_shards_back_and_leaves_in_time(
    tmp_path: Path,
) -> None:
    with Harness.create(tmp_path, stop_seconds=2.0, engine_factory="tests.faults.engine:lingering_engine") as harness:
        worker, job_id = at_work(harness)

        assert worker.terminate(STOP_SECONDS) == 1

        shards = harness.shards(job_id)
        assert all(shard.state is not ShardState.RUNNING for shard in shards)
        assert sum(shard.preemptions for shard in shards) >= 1
        assert sum(shard.crashes + shard.failures for shard in shards) == 0


def test_34_a_revoked_task_gives_its_shard_back_and_its_slot_too(tmp_path: Path) -> None:
    with Harness.create(tmp_path, worker_slots=1) as harness:
        worker, job_id = at_work(harness)
        control = app_of(harness).control
        asked = 0

        def is_preempted() -> bool:
            nonlocal asked
            for shard in harness.shards(job_id):
                if shard.state is ShardState.RUNNING and shard.epoch == 1:
                    control.revoke(f"{shard.id}.{shard.dispatch_seq}", terminate=True)
                    asked += 1
            return sum(shard.preemptions for shard in harness.shards(job_id)) >= 2

        wait_for(is_preempted, "two attempts are given back, with one slot")

        harness.done(job_id, ROWS)
        assert asked >= 2
        assert sum(shard.crashes + shard.failures for shard in harness.shards(job_id)) == 0
        assert worker.process.poll() is None


def test_35_whatever_a_task_raises_frees_its_slot_and_its_shard_is_tried_again(tmp_path: Path) -> None:
    changes = {"engine_factory": "tests.faults.engine:raising_engine", "worker_slots": 2}
    with Harness.create(tmp_path, **changes) as harness:
        worker = harness.start_worker("w0")
        job = harness.submit(prompts(ROWS), shard_rows=30)

        harness.wait_for_end(job.id)

        shards = harness.shards(job.id)
        assert harness.job(job.id).rows_succeeded == ROWS
        assert sum(shard.failures for shard in shards) == 4
        assert sum(shard.crashes for shard in shards) == 0
        assert worker.process.poll() is None


def test_a_worker_that_is_drained_finishes_its_shard_takes_no_other_and_leaves_with_0(tmp_path: Path) -> None:
    with Harness.create(tmp_path, worker_slots=1) as harness:
        worker, job_id = at_work(harness)
        [record] = harness.repository.workers(10.0)
        assert record.step_age is not None
        assert record.loop_age is not None

        asked = harness.repository.request_drain(record.id, 10.0)

        assert asked == [record.id]
        assert worker.process.wait(60) == 0
        shards = harness.shards(job_id)
        assert sum(shard.preemptions + shard.crashes + shard.failures for shard in shards) == 0
        assert 1 <= sum(shard.state is ShardState.DONE for shard in shards) < 3
        harness.start_worker("w1")
        harness.done(job_id, ROWS)


def test_below_the_reserve_of_its_disk_a_worker_claims_nothing_and_says_so_once(tmp_path: Path) -> None:
    with Harness.create(tmp_path, disk_reserve_bytes=1 << 60, hint_stale_seconds=0.5) as harness:
        worker = harness.start_worker("w0")
        job = harness.submit(prompts(ROWS), shard_rows=30)

        def has_said() -> bool:
            return any(record.notice == "no room on the disk" for record in harness.repository.workers(2.0))

        wait_for(has_said, "the worker's record says why it takes nothing")

        assert [shard.attempts for shard in harness.shards(job.id)] == [0] * len(harness.shards(job.id))
        assert worker.text.count("disk_low") == 1
        harness.start_worker("w1", NIGHTMILL_DISK_RESERVE_BYTES="0")
        harness.done(job.id, ROWS)
        assert worker.text.count("disk_low") == 1


@pytest.mark.parametrize("point", ["segment.before_fsync:full@2", "commit.before_fsync:full"])
def test_a_full_disk_is_no_crash_and_the_worker_goes_on_when_there_is_room(tmp_path: Path, point: str) -> None:
    with Harness.create(tmp_path, full_disk_seconds=0.5) as harness:
        worker = harness.start_worker("w0", NIGHTMILL_FAILPOINTS=point, **speed(100))
        job = harness.submit(prompts(ROWS), shard_rows=30)

        harness.done(job.id, ROWS)

        shards = harness.shards(job.id)
        assert sum(shard.preemptions for shard in shards) >= 1
        assert sum(shard.crashes + shard.failures for shard in shards) == 0
        assert "disk_full" in worker.text
        assert "disk_has_room" in worker.text
        assert harness.job(job.id).state is JobState.COMPLETED


def test_51_a_process_that_has_imported_torch_is_no_worker_of_a_gpu(harness: Harness) -> None:
    variables = {
        **worker_environment(harness.settings, harness.broker.url),
        "NIGHTMILL_DATABASE_URL": harness.database_url,
        "NIGHTMILL_DEVICE": "cuda",
        "CUDA_VISIBLE_DEVICES": "0",
        "PATH": os.environ["PATH"],
    }
    program = (
        "import sys, types; sys.modules['torch'] = types.ModuleType('torch');"
        "from jobs.worker import main; sys.exit(main([]))"
    )
    command = [sys.executable, "-c", program]

    refused = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60, check=False)

    assert refused.returncode == 2
    assert "torch was imported before the worker chose its GPU" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_36_a_worker_whose_event_loop_hangs_gives_its_shards_back_and_leaves(harness: Harness) -> None:
    environment = {"NIGHTMILL_ENGINE_FACTORY": "tests.faults.engine:deaf_engine", "NIGHTMILL_LOOP_STALL_SECONDS": "2"}
    deaf = harness.start_worker("w0", **environment, **speed(10))
    job = harness.submit(prompts(96), shard_rows=96)
    harness.wait_for_rows(job.id, 8)

    deaf.process.send_signal(signal.SIGALRM)

    assert deaf.process.wait(30) == EXIT_ENGINE_DEAD
    shards = harness.shards(job.id)
    assert {shard.crashes for shard in shards} == {0}
    assert sum(shard.preemptions for shard in shards) >= 1
    assert all(shard.state is not ShardState.RUNNING for shard in shards)
    harness.start_worker("w1")
    harness.done(job.id, 96)
