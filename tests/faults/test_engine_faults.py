"""Engines that hang, and rows that do not come to an end."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.options import SubmitOptions
from jobs.sampling import Sampling
from jobs.submit import submit
from storage.states import JobState
from tests.faults.checker import check_job
from tests.faults.harness import Harness

pytestmark = pytest.mark.integration

PROMPTS = [f"prompt number {i}" for i in range(30)]


def test_36_a_worker_whose_engine_hangs_leaves_with_70_and_its_shard_is_tried_again(tmp_path: Path) -> None:
    with Harness.create(tmp_path, engine_stall_seconds=1.0) as harness:
        hanging = harness.start_worker("w0", FAKE_ENGINE_HANG="HANG")
        job = harness.submit([*PROMPTS, "HANG"], shard_rows=40)

        assert hanging.process.wait(30) == 70

        assert "made no step for" in hanging.text
        harness.start_worker("w1")
        assert harness.wait_for_end(job.id).state is JobState.COMPLETED
        check_job(harness.repository, job.id, {(i, 0) for i in range(31)})


def test_40_a_row_that_does_not_end_in_time_is_an_error_and_the_others_are_done(tmp_path: Path) -> None:
    changes = {"engine_factory": "tests.looping:looping_engine", "request_timeout_seconds": 1.0}
    with Harness.create(tmp_path, **changes) as harness:
        worker = harness.start_worker("w0")
        options = SubmitOptions(
            inputs=(str(harness.write_input([*PROMPTS, "! for ever"])),),
            output=tmp_path / "out",
            model=str(harness.model),
            sampling=Sampling().overridden({"max_tokens": 3000}),
            shard_rows=16,
        )
        job = submit(options, harness.repository, harness.settings).job

        assert harness.wait_for_end(job.id).state is JobState.COMPLETED

        table = check_job(harness.repository, job.id, {(i, 0) for i in range(31)})
        failed = [row for row in table.to_pylist() if row["status"] == "errored"]
        assert [(row["prompt"], row["error_code"]) for row in failed] == [("! for ever", "request_timeout")]
        assert worker.process.poll() is None
        assert sum(shard.crashes + shard.failures for shard in harness.repository.shards(job.id)) == 0
