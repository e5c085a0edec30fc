"""A worker process: which model it takes, when it leaves by itself, and what it says of itself in SQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.app import make_app
from storage.states import JobState, ShardState
from tests.faults.harness import Harness, WorkerProcess, wait_for

pytestmark = pytest.mark.integration

PROMPTS = [f"prompt number {i}" for i in range(40)]
KEYS = {(i, 0) for i in range(40)}
ANY_MODEL = ""
REFUSING = "tests.fakes:refusing_engine"


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    with Harness.create(tmp_path, idle_exit_seconds=1.0) as started:
        yield started


def test_a_worker_without_a_model_serves_the_oldest_waiting_job_and_leaves_when_nothing_waits(
    harness: Harness,
) -> None:
    job = harness.submit(PROMPTS)
    worker = harness.start_worker("w0", model=ANY_MODEL)

    assert harness.wait_for_end(job.id).state is JobState.COMPLETED
    assert worker.process.wait(60) == 0
    harness.check(job.id, KEYS)
    (record,) = harness.repository.workers()
    assert (record.state, record.model_key) == ("gone", job.model.key)


def test_a_worker_without_a_model_and_without_a_job_leaves(harness: Harness) -> None:
    assert harness.start_worker("w0", model=ANY_MODEL).process.wait(60) == 0


def test_a_worker_with_a_model_stays_and_serves_a_later_job(harness: Harness) -> None:
    worker = harness.start_worker("w0")
    first = harness.submit(PROMPTS[:8], name="first")
    harness.wait_for_end(first.id)
    wait_for(lambda: harness.repository.workers(2.0)[0].state == "ready", "the worker is ready")

    second = harness.submit(PROMPTS[:8], name="second")

    assert harness.wait_for_end(second.id).state is JobState.COMPLETED
    assert worker.process.poll() is None
    assert worker.terminate() == 0


def test_a_model_that_cannot_be_served_fails_the_waiting_job_with_the_engine_s_words(harness: Harness) -> None:
    job = harness.submit(PROMPTS)

    worker = harness.start_worker("w0", model=ANY_MODEL, NIGHTMILL_ENGINE_FACTORY=REFUSING)

    assert worker.process.wait(60) == 78
    failed = harness.job(job.id)
    assert failed.state is JobState.FAILED
    assert failed.error is not None
    assert "'quantum'" in failed.error
    assert "'quantum'" in worker.text


def test_a_job_that_was_begun_ends_as_well_when_the_named_model_cannot_be_served_any_more(harness: Harness) -> None:
    first = harness.start_worker("w0", FAKE_ENGINE_ROWS_PER_SECOND="15")
    job = harness.submit(PROMPTS)
    harness.wait_for_rows(job.id, 4)
    first.kill()

    second = harness.start_worker("w0", NIGHTMILL_ENGINE_FACTORY=REFUSING)

    failed = harness.wait_for_end(job.id)
    assert second.process.wait(60) == 78
    assert (failed.state, failed.rows_succeeded + failed.rows_canceled) == (JobState.FAILED, len(PROMPTS))
    assert failed.rows_succeeded >= 4
    assert "'quantum'" in str(failed.error)


def test_a_worker_that_was_named_a_missing_model_fails_the_jobs_that_wait_for_it(harness: Harness) -> None:
    job = harness.submit(PROMPTS)
    (harness.model / "config.json").unlink()

    worker = harness.start_worker("w0")

    assert worker.process.wait(60) == 78
    assert "no config.json" in str(harness.job(job.id).error)


def test_one_machine_that_cannot_serve_a_model_does_not_end_the_job_that_another_serves(harness: Harness) -> None:
    harness.start_worker("w0", FAKE_ENGINE_ROWS_PER_SECOND="15")
    job = harness.submit(PROMPTS)
    harness.wait_for_rows(job.id, 1)

    broken = harness.start_worker("w1", NIGHTMILL_ENGINE_FACTORY=REFUSING)

    assert broken.process.wait(60) == 78
    assert harness.wait_for_end(job.id).state is JobState.COMPLETED


def test_the_engine_runs_in_the_type_of_the_job_whatever_the_worker_s_own_is(harness: Harness) -> None:
    job = harness.submit(PROMPTS)

    worker = harness.start_worker("w0", model=ANY_MODEL, NIGHTMILL_ENGINE_FACTORY=REFUSING, NIGHTMILL_DTYPE="bfloat16")

    assert worker.process.wait(60) == 78
    assert job.model.dtype == "float32"
    assert "in float32" in str(harness.job(job.id).error)


def test_a_named_model_is_served_in_the_worker_s_type_and_leaves_jobs_of_another_type_alone(harness: Harness) -> None:
    job = harness.submit(PROMPTS)

    worker = harness.start_worker("w0", NIGHTMILL_ENGINE_FACTORY=REFUSING, NIGHTMILL_DTYPE="bfloat16")

    assert worker.process.wait(60) == 78
    assert "in bfloat16" in worker.text
    assert harness.job(job.id).state is JobState.QUEUED


def test_a_worker_whose_settings_cannot_be_honoured_says_so_and_leaves_the_job_to_another(harness: Harness) -> None:
    job = harness.submit(PROMPTS)

    broken = harness.start_worker("w0", NIGHTMILL_ENGINE_FACTORY="tests.fakes:misconfigured_engine")

    assert broken.process.wait(60) == 78
    assert "nightmill worker: cache_bytes is 7" in broken.text
    assert "Traceback" not in broken.text
    assert harness.job(job.id).state is JobState.QUEUED
    harness.start_worker("w0")
    assert harness.wait_for_end(job.id).state is JobState.COMPLETED


@pytest.mark.parametrize(
    ("environment", "code", "words"),
    [
        ({"NIGHTMILL_DATABASE_URL": "postgresql://me:secret@127.0.0.1:1/db"}, 8, "127.0.0.1:1"),
        ({"NIGHTMILL_DATABASE_URL": "nowhere"}, 2, "the database URL cannot be parsed"),
        ({"NIGHTMILL_LEASE_SECONDS": "soon"}, 2, "NIGHTMILL_LEASE_SECONDS"),
    ],
)
def test_a_worker_that_cannot_begin_ends_with_the_documented_code_and_one_message(
    harness: Harness, environment: dict[str, str], code: int, words: str
) -> None:
    worker = harness.start_worker("w0", **environment)

    assert worker.process.wait(60) == code
    assert "nightmill worker: " in worker.text
    assert words in worker.text
    assert "Traceback" not in worker.text
    assert "secret" not in worker.text


def test_two_machines_of_one_host_name_do_not_take_each_other_s_shards(harness: Harness, tmp_path: Path) -> None:
    def start(machine: str) -> WorkerProcess:
        (tmp_path / machine).mkdir()
        return harness.start_worker("w0", TMPDIR=str(tmp_path / machine), FAKE_ENGINE_ROWS_PER_SECOND="15")

    job = harness.submit(PROMPTS)
    first = start("one")
    harness.wait_for_rows(job.id, 1)
    second = start("two")

    assert harness.wait_for_end(job.id).state is JobState.COMPLETED
    assert first.process.poll() is None
    assert second.process.poll() is None
    wait_for(lambda: len(harness.repository.workers()) == 2, "the second worker has a name of its own")
    assert "w0" in {record.id.partition("@")[0] for record in harness.repository.workers()}
    assert sum(shard.crashes for shard in harness.repository.shards(job.id)) == 0


def test_a_worker_whose_name_was_taken_seals_its_rows_and_ends_with_a_message(harness: Harness) -> None:
    job = harness.submit(PROMPTS)
    worker = harness.start_worker("w0", FAKE_ENGINE_ROWS_PER_SECOND="15")
    harness.wait_for_rows(job.id, 1)
    (record,) = harness.repository.workers()

    harness.repository.register_worker(replace(record, boot_id="another"))

    assert worker.process.wait(60) == 9
    assert f"nightmill worker: worker name {record.id} belongs to another process" in worker.text
    assert "Traceback" not in worker.text
    assert all(shard.state is not ShardState.RUNNING for shard in harness.repository.shards(job.id))


def test_flower_sees_job_shard_and_model_in_the_arguments_of_each_task(harness: Harness) -> None:
    app = make_app(harness.broker.url, prefix=harness.settings.redis_prefix)
    seen: dict[str, dict[str, object]] = {}

    def note(event: dict[str, object]) -> None:
        seen.setdefault(str(event["uuid"]), {}).update(event)

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"task-received": note, "task-succeeded": note})
        listener = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None, "wakeup": False})
        listener.start()
        harness.start_worker("w0")
        job = harness.submit(PROMPTS[:8])
        wait_for(lambda: any("result" in task for task in seen.values()), "a task has succeeded")
        receiver.should_stop = True
        listener.join()

    assert list(seen) == ["1.1"]
    assert seen["1.1"]["kwargs"] == f"{{'job_id': {job.id}, 'shard': 1, 'model': '{job.model.source}'}}"
    assert str(seen["1.1"]["result"]).startswith("'rows=8 cached=")
