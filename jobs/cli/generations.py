"""Commands about the generations of a job's results: retry, gc."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs import place
from jobs.cli import terminal
from jobs.cli.inspect import JobArgument
from jobs.exits import UsageError


def add_to(app: typer.Typer) -> None:
    for command in (retry, gc):
        app.command()(command)


def retry(
    job: JobArgument,
    status: Annotated[
        list[str] | None, typer.Option(help="Rows with this status: errored, expired, canceled; may be repeated.")
    ] = None,
    finish_reason: Annotated[
        list[str] | None, typer.Option(help="Rows that ended for this reason, as length; may be repeated.")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE: a sampling option for these rows; may be repeated.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end (embedded mode always does).")] = False,
    wait_timeout: Annotated[float | None, typer.Option(help="Wait so many seconds at most (exit 124).")] = None,
) -> None:
    """Run rows of a published job again; their new results replace the old ones.

    Rows that match any of the conditions run again, with all their samples. What they were before stays readable
    through the older manifest in _meta until `nightmill gc`. The job's deadline no longer holds.
    """
    from jobs import client
    from jobs.cli import submission
    from jobs.retrying import Choice, parse_options

    try:
        choice = Choice(
            statuses=frozenset(status or ()),
            finish_reasons=frozenset(finish_reason or ()),
            options=parse_options(options or ()),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    waits = wait or wait_timeout is not None
    code = submission.run_again(job, choice, client.place_for({}), waits=waits, timeout=wait_timeout)
    raise typer.Exit(code)


def gc(
    job: Annotated[int | None, typer.Argument(metavar="[JOB]", help="Of this job; else of all.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete what only older generations of published results list; never what the newest lists."""
    from jobs.garbage import find_garbage
    from storage.records import JobId

    with place.find().repository() as repository:
        for garbage in find_garbage(repository, None if job is None else JobId(job)):
            size = garbage.num_bytes
            if not dry_run:
                garbage.collect()
            for path in garbage.paths:
                sys.stdout.write(f"{path}\n")
            done = "would be deleted" if dry_run else "deleted"
            terminal.say(f"job {garbage.job.id}: {size:,} bytes of generations before {garbage.newest} {done}")
