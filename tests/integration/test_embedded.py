"""Embedded mode as processes: one owner, children that never outlive it, a second submit that joins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.embedded import EmbeddedOwner, OwnerBusy, connect, database_url, owner_alive
from jobs.exits import OwnerMissing
from jobs.settings import Settings
from storage.errors import DatabaseDown, SchemaOutdated
from storage.records import Job, JobId
from storage.repository import Repository
from storage.states import JOB_FINAL, JobState, ShardState
from tests.fakes import make_fake_model
from tests.faults.checker import check_job
from tests.faults.harness import alive, wait_for
from tests.integration.program import ROOT, Program

pytestmark = pytest.mark.integration

ROWS = 60
PATIENCE = 150.0  # seconds; starting a process is slow on a busy machine
KEYS = {(i, 0) for i in range(ROWS)}


Start = Callable[..., "Submission"]


class Submission:
    """`submit_job.py` in the background, in its own session like a terminal's."""

    def __init__(self, program: Program, out: str, **environment: str) -> None:
        self.home = program.folder / "home"
        source = program.folder / "in.parquet"
        model = program.folder / "model"
        if not source.exists():
            pq.write_table(pa.table({"prompt": [f"prompt {i}" for i in range(ROWS)]}), source)
            make_fake_model(model)
        self.log = program.folder / f"{out}.log"
        command = [sys.executable, str(ROOT / "submit_job.py"), str(source), "-o", str(program.folder / out)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--model", str(model), "--max-tokens", "8"],
                cwd=program.folder,
                env={**program.environment, "OMP_NUM_THREADS": "1", **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def descendants(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def wait_for_worker_rows(self, rows: int) -> None:
        """Until the only job has this many finished rows."""

        def enough() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return any(job.rows_done >= rows for job in _jobs(self.home))
            except (DatabaseDown, SchemaOutdated):
                return False  # the submission is about to make it

        wait_for(enough, f"{rows} rows are done")


@pytest.fixture
def start(program: Program) -> Iterator[Callable[..., Submission]]:
    """Starts submissions and kills the ones that a failing test leaves."""
    started: list[Submission] = []

    def start_one(out: str, **environment: str) -> Submission:
        started.append(Submission(program, out, **environment))
        return started[-1]

    yield start_one
    for submission in started:
        submission.process.kill()
        submission.process.wait()


@pytest.fixture
def slow_submission(start: Start) -> Submission:
    return start("out", FAKE_ENGINE_ROWS_PER_SECOND="15")


def test_killing_the_owner_leaves_no_child_and_the_same_command_resumes(
    slow_submission: Submission, start: Start
) -> None:
    slow_submission.wait_for_worker_rows(4)
    children = slow_submission.descendants()
    assert len(children) == 2, "a broker and a worker"

    slow_submission.process.kill()
    slow_submission.process.wait()

    wait_for(lambda: not any(alive(pid) for pid in children), "broker and worker are gone", 15.0)
    again = start("out")
    assert again.process.wait(PATIENCE) == 0, again.log.read_text()
    _check_only_job(slow_submission.home)


def test_ctrl_c_seals_the_work_stops_every_child_and_exits_with_130(slow_submission: Submission, start: Start) -> None:
    slow_submission.wait_for_worker_rows(4)
    children = slow_submission.descendants()

    os.killpg(slow_submission.process.pid, signal.SIGINT)

    assert slow_submission.process.wait(30) == 130, slow_submission.log.read_text()
    assert not any(alive(pid) for pid in children)
    assert "resumes" in slow_submission.log.read_text()
    repository = Repository(database_url(Settings(home=slow_submission.home)))
    shards = repository.shards(JobId(1))
    assert all(shard.state is not ShardState.RUNNING for shard in shards)
    assert sum(shard.crashes for shard in shards) == 0
    repository.close()
    again = start("out")
    assert again.process.wait(PATIENCE) == 0, again.log.read_text()
    _check_only_job(slow_submission.home)


def test_a_second_submit_joins_the_running_owner(slow_submission: Submission, start: Start) -> None:
    slow_submission.wait_for_worker_rows(1)
    content = json.loads((slow_submission.home / "owner.json").read_text())

    second = start("out2")

    assert slow_submission.process.wait(PATIENCE) == 0, slow_submission.log.read_text()
    assert second.process.wait(PATIENCE) == 0, second.log.read_text()
    assert content["pid"] == slow_submission.process.pid
    jobs = _jobs(slow_submission.home)
    assert [job.state for job in jobs] == [JobState.COMPLETED] * 2


def test_only_one_process_owns_a_state_directory_and_its_folder_is_private(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    with pytest.raises(OwnerMissing):
        connect(settings)

    with EmbeddedOwner(settings) as owner:
        assert owner_alive(settings)
        assert connect(settings) == owner.addresses
        with pytest.raises(OwnerBusy):
            EmbeddedOwner(settings).start()
        assert settings.home.stat().st_mode & 0o777 == 0o700
        assert (settings.home / "broker").stat().st_mode & 0o777 == 0o700

    assert not owner_alive(settings)
    assert not (settings.home / "owner.json").exists()


def test_a_state_directory_with_a_long_path_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / ("long" * 30))

    with EmbeddedOwner(settings) as owner:
        socket = Path(owner.addresses.broker_url.removeprefix("redis+socket://"))
        assert len(os.fsencode(socket)) <= 107
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert connect(settings) == owner.addresses

    assert not socket.parent.exists()


def test_a_worker_that_dies_again_and_again_is_given_up_with_the_end_of_its_log(start: Start) -> None:
    broken = start(
        "out",
        NIGHTMILL_ENGINE_FACTORY="no.such:factory",
        NIGHTMILL_RESTART_BACKOFF_SECONDS="0.01",
        NIGHTMILL_MAX_CONSECUTIVE_RESTARTS="1",
    )

    assert broken.process.wait(PATIENCE) == 8, broken.log.read_text()

    text = broken.log.read_text()
    assert "2 times in a row" in text
    assert "no.such:factory" in text


def test_settings_that_the_engine_refuses_are_told_after_one_try_and_the_job_can_be_resumed(start: Start) -> None:
    broken = start("out", NIGHTMILL_ENGINE_FACTORY="tests.fakes:misconfigured_engine")

    assert broken.process.wait(PATIENCE) == 8, broken.log.read_text()

    assert "cache_bytes is 7" in broken.log.read_text()
    assert "Traceback" not in broken.log.read_text()
    assert (broken.home / "worker.log").read_text().count("cache_bytes is 7") == 1
    again = start("out")
    assert again.process.wait(PATIENCE) == 0, again.log.read_text()
    _check_only_job(broken.home)


def _jobs(home: Path) -> list[Job]:
    repository = Repository(database_url(Settings(home=home)))
    try:
        return repository.list_jobs()
    finally:
        repository.close()


def _check_only_job(home: Path) -> None:
    repository = Repository(database_url(Settings(home=home)))
    (job,) = repository.list_jobs()
    assert job.state in JOB_FINAL
    check_job(repository, job.id, KEYS)
    repository.close()
