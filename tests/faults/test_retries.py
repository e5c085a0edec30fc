"""Faults while rows of a published job run again: each row still has one result, and the counts are true."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.planning import silent
from jobs.retrying import Choice, Retried, retry
from storage.errors import JobConflict
from storage.records import Job
from storage.repository import Repository
from storage.states import JobState
from tests.faults.checker import read_data
from tests.faults.engine import fake_text
from tests.faults.harness import Harness, prompts, speed, wait_for

pytestmark = pytest.mark.integration

ROWS = 96
LONGER = 40


def again(harness: Harness, job: Job) -> Retried:
    """Run all rows again that were cut off, with more room."""
    choice = Choice(finish_reasons=frozenset({"length", "stop"}), options={"max_tokens": LONGER})
    return retry(job.id, choice, harness.repository, harness.settings, silent)


def check(harness: Harness, job: Job) -> None:
    table = read_data(Path(job.output_uri))
    assert table["row_index"].to_pylist() == list(range(ROWS))
    for row in table.to_pylist():
        assert row["output_text"] == fake_text(row, LONGER)
    ended = harness.job(job.id)
    assert (ended.rows_succeeded, ended.rows_total, ended.published_generation) == (ROWS, ROWS, 2)
    harness.repository.check_integrity()


def test_a_worker_that_is_killed_in_a_second_generation_loses_and_doubles_no_row(tmp_path: Path) -> None:
    with Harness.create(tmp_path) as harness:
        worker = harness.start_worker("one", **speed(400))
        job = harness.submit(prompts(ROWS))
        harness.wait_for_end(job.id)
        worker.kill()

        slow = harness.start_worker("two", **speed(60))
        assert again(harness, job).job.state is JobState.QUEUED
        harness.wait_for_rows(job.id, 20)
        slow.kill()
        harness.repository.check_integrity()
        harness.start_worker("three", **speed(400))

        assert harness.wait_for_end(job.id).state is JobState.COMPLETED
        check(harness, job)
        assert {shard.idx for shard in harness.shards(job.id)} == set(range(len(harness.shards(job.id))))


def test_a_publisher_that_dies_between_two_parts_of_a_second_generation_is_followed_by_another(tmp_path: Path) -> None:
    with Harness.create(tmp_path) as harness:
        harness.start_worker("one", **speed(400))
        job = harness.submit(prompts(ROWS))
        harness.wait_for_end(job.id)
        harness.stop_reconciler()

        dying = harness.start_reconciler_process("dying", NIGHTMILL_FAILPOINTS="publish.after_parts:kill")
        again(harness, job)
        wait_for(lambda: dying.process.poll() is not None, "the publisher dies")
        assert harness.job(job.id).published_generation == 1
        harness.start_reconciler()

        assert harness.wait_for_end(job.id).state is JobState.COMPLETED
        check(harness, job)


def test_of_two_retries_at_once_one_wins_and_the_other_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Harness.create(tmp_path) as harness:
        harness.start_worker("one", **speed(400))
        job = harness.submit(prompts(ROWS))
        harness.wait_for_end(job.id)
        real = Repository.retry_job

        def overtaken(repository: Repository, *arguments: object) -> Job:
            monkeypatch.undo()
            again(harness, job)
            return real(repository, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Repository, "retry_job", overtaken)
        with pytest.raises(JobConflict):
            again(harness, job)

        assert harness.wait_for_end(job.id).state is JobState.COMPLETED
        check(harness, job)
