"""One submission from plan to exit code: the plan on stderr, the job id on stdout, a bar while it runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from jobs import client, progress, report
from jobs.cli import terminal
from jobs.cli.planning import planning_bar
from jobs.exits import Exit, Interrupted, of_job
from jobs.withdrawal import give_back
from storage.states import JOB_FINAL, JobState

if TYPE_CHECKING:
    from jobs.options import SubmitOptions
    from jobs.place import Place
    from jobs.retrying import Choice
    from jobs.submit import Submitted
    from storage.records import Job
    from storage.repository import Repository


def show_plan(options: SubmitOptions, place: Place) -> None:
    """`--dry-run`: everything but the job. Raises InputInvalid, ModelUnknown."""
    from jobs.submit import dry_run

    with _one_interrupt("nothing was submitted"), planning_bar() as show:
        plan = dry_run(options, place.settings, show)
    for line in report.plan_lines(plan):
        terminal.say(line)
    terminal.say("dry run: nothing was submitted")


def run(options: SubmitOptions, place: Place, *, waits: bool, timeout: float | None) -> Exit:
    """Submit, and wait for the end where asked for or where nobody else would run the job. The exit code."""
    with place.repository() as repository:
        with _one_interrupt("nothing was submitted"), planning_bar() as show:
            submitted = client.submit(options, place, repository, show)
        job = submitted.job
        _tell(submitted)
        if not place.settings.embedded:
            for line in client.missing(place, repository, job, repository.shards(job.id)):
                terminal.say(line)
        if job.state in JOB_FINAL or not (waits or place.settings.embedded):
            return _end(job) if job.state in JOB_FINAL else Exit.DONE
        return _end(_wait(place, repository, job, timeout))


def run_again(job_id: int, choice: Choice, place: Place, *, waits: bool, timeout: float | None) -> Exit:
    """Queue rows of a published job again, and wait for the end as after a submit. The exit code."""
    with place.repository() as repository:
        with _one_interrupt("nothing runs again"), planning_bar() as show:
            retried = client.retry(job_id, choice, place, repository, show)
        job = retried.job
        if retried.plan is None:
            terminal.say(f"no row of job {job.id} matches; nothing runs again")
            return Exit.DONE
        for line in report.plan_lines(retried.plan):
            terminal.say(line)
        terminal.say(f"job {job.id}: {retried.plan.record.num_rows:,} rows run again for generation {job.generation}")
        if not place.settings.embedded:
            for line in client.missing(place, repository, job, repository.shards(job.id)):
                terminal.say(line)
        return _end(_wait(place, repository, job, timeout)) if waits or place.settings.embedded else Exit.DONE


def _wait(place: Place, repository: Repository, job: Job, timeout: float | None) -> Job:
    with _sigterm_as_interrupt(), client.at_work(place, job) as check:
        ended = progress.follow(
            repository, job.id, poll_seconds=place.settings.watch_seconds, timeout=timeout, check=check
        )
    if ended.state is JobState.FAILED:
        give_back(repository, ended)  # the worker that failed it was perhaps stopped before it came to this
    return ended


def _tell(submitted: Submitted) -> None:
    job = submitted.job
    if submitted.plan is not None:
        for line in report.plan_lines(submitted.plan):
            terminal.say(line)
    before = "was submitted before"
    told = {
        "new": "submitted",
        "replanned": f"{before}; its planning had been broken off and is done now",
        "resumed": f"{before} and is resumed",
        "attached": f"{before} and is being worked on; this command attaches to it",
        "paused": f"{before} and is paused; `nightmill resume {job.id}` lets it go on",
        "ended": f"{before} and is {job.state.value}",
    }
    terminal.say(f"job {job.id} {told[submitted.how]}: {job.model.source} -> {job.output_uri}")
    sys.stdout.write(f"{job.id}\n")
    sys.stdout.flush()


def _end(job: Job) -> Exit:
    """Say how the job ended, and what to look at."""
    terminal.say(
        f"job {job.id} {job.state.value}: {job.rows_succeeded:,} rows succeeded, {job.rows_errored:,} failed,"
        f" {job.rows_canceled + job.rows_expired:,} not run; see `nightmill stats {job.id}`"
    )
    if job.error:
        terminal.say(f"reason: {job.error}")
    if job.rows_errored:
        terminal.say(f"failed rows: `nightmill results {job.id} --errors`")
    return of_job(job)


@contextmanager
def _one_interrupt(consequence: str) -> Iterator[None]:
    """Ctrl-C inside the block ends the command with this message."""
    try:
        with _sigterm_as_interrupt():
            yield
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted: {consequence}; the same command starts again") from None


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Whoever stops us, by key or by signal, the work is sealed and every child is stopped."""

    def interrupt(*_: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
