"""Commands that steer a job after its submission: pause, resume, cancel."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs import place
from jobs.cli import terminal
from jobs.cli.inspect import JobArgument


def add_to(app: typer.Typer) -> None:
    for command in (pause, resume, cancel):
        app.command()(command)


def pause(job: JobArgument) -> None:
    """Stop working on a job for now: its shards are given back at their next heartbeat, what is done is kept."""
    from storage.records import JobId

    with place.find().repository() as repository:
        state = repository.pause_job(JobId(job)).state
    terminal.say(f"job {job} is {state.value}; `nightmill resume {job}` lets it go on")


def resume(job: JobArgument) -> None:
    """Let a paused job go on where it stopped."""
    from jobs import client
    from storage.records import JobId

    found = place.find()
    with found.repository() as repository:
        resumed = repository.resume_job(JobId(job))
        terminal.say(f"job {job} is {resumed.state.value}")
        for line in client.missing(found, repository, resumed, repository.shards(resumed.id)):
            terminal.say(line)


def cancel(
    job: JobArgument,
    now: Annotated[bool, typer.Option("--now", help="Abort also the rows that the engines are working on.")] = False,
) -> None:
    """Cancel a job; rows that are done are kept and published.

    Nothing new is begun from the next heartbeat on. Rows that an engine has begun are finished first; with --now they
    are aborted, also after a cancel without it.
    """
    from storage.records import JobId

    with place.find().repository() as repository:
        state = repository.request_cancel(JobId(job), at_once=now).state
    terminal.say(f"job {job} is {state.value}")
