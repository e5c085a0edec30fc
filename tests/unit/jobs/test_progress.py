"""A job is followed to its end, or to the end of the patience."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from jobs import progress
from jobs.exits import OwnerMissing, TimedOut
from jobs.progress import Moment
from storage.records import Job, JobId, RunStats
from storage.states import JobState

MakeJob = Callable[..., Job]


class ScriptedRepository:
    """Answers with one job after the other; the last one stays."""

    def __init__(self, *jobs: Job, file: Path | None = None) -> None:
        self.jobs = list(jobs)
        self.file = file
        self.reads = 0

    def get_job(self, job_id: JobId) -> Job:
        self.reads += 1
        return self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0]

    def job_stats(self, job_id: JobId) -> RunStats:
        return RunStats(prompt_tokens=10, cached_tokens=5)


def follow(repository: ScriptedRepository, timeout: float | None = None, **more: object) -> Job:
    return progress.follow(repository, JobId(7), poll_seconds=0.001, timeout=timeout, **more)  # type: ignore[arg-type]


def test_a_job_is_followed_until_it_has_ended(make_job: MakeJob) -> None:
    ended = make_job(state=JobState.COMPLETED, rows_succeeded=100)

    assert follow(ScriptedRepository(make_job(), make_job(), ended)) is ended


def test_only_changes_are_told(make_job: MakeJob) -> None:
    ended = make_job(state=JobState.FAILED, rows_errored=100)
    told: list[Moment] = []

    follow(ScriptedRepository(make_job(), make_job(), make_job(rows_succeeded=3), ended), tell=told.append)

    assert [(moment.job.state, moment.job.rows_done) for moment in told] == [
        ("in_progress", 0),
        ("in_progress", 3),
        ("failed", 100),
    ]
    assert told[0].as_line()["hit_rate"] == 0.5


def test_a_wait_that_times_out_says_that_the_job_goes_on(make_job: MakeJob) -> None:
    with pytest.raises(TimedOut, match=r"job 7 is in_progress after 0 s; it goes on; .*nightmill watch 7"):
        follow(ScriptedRepository(make_job()), timeout=0)


def test_a_job_that_has_ended_never_times_out(make_job: MakeJob) -> None:
    ended = make_job(state=JobState.COMPLETED)

    assert follow(ScriptedRepository(ended), timeout=0) is ended


def test_the_check_ends_the_wait_when_nobody_runs_the_job(make_job: MakeJob) -> None:
    def check() -> None:
        raise OwnerMissing("the owner is gone")

    with pytest.raises(OwnerMissing):
        follow(ScriptedRepository(make_job()), check=check)


def test_a_job_in_a_file_is_read_when_somebody_wrote_to_it_and_else_now_and_then(
    make_job: MakeJob, tmp_path: Path
) -> None:
    polls = 0
    with closing(sqlite3.connect(tmp_path / "nightmill.db")) as writer:
        writer.execute("CREATE TABLE notes (n INTEGER)")
        repository = ScriptedRepository(
            make_job(), make_job(), make_job(), make_job(state=JobState.COMPLETED), file=tmp_path / "nightmill.db"
        )

        def check() -> None:
            nonlocal polls
            polls += 1
            if polls == 3:
                writer.execute("INSERT INTO notes VALUES (1)")
                writer.commit()

        follow(repository, check=check)

    assert repository.reads == 4
    assert polls == 3 + 2 * progress.QUIET_POLLS


def test_plain_lines_go_to_stderr(make_job: MakeJob, capsys: pytest.CaptureFixture[str]) -> None:
    follow(ScriptedRepository(make_job(rows_succeeded=3), make_job(state=JobState.COMPLETED, rows_succeeded=100)))

    lines: Iterator[str] = iter(capsys.readouterr().err.splitlines())
    assert next(lines).startswith("job 7 in_progress: 3/100 rows, ")
    assert next(lines).startswith("job 7 completed: 100/100 rows, ")
