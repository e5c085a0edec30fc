"""Commands that look at jobs: list, status, watch, results, stats."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import client, place, report
from jobs.cli import terminal
from jobs.exits import Interrupted, UsageError, of_job

if TYPE_CHECKING:
    from jobs.results import Results

JobArgument = Annotated[int, typer.Argument(metavar="JOB", help="The id that submit printed.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON also on a terminal.")]


def add_to(app: typer.Typer) -> None:
    app.command("list")(list_jobs)
    for command in (status, watch, results, stats):
        app.command()(command)


def list_jobs(
    limit: Annotated[int, typer.Option(min=1, help="At most so many jobs.")] = 100,
    json: JsonOption = False,
) -> None:
    """List the jobs, newest first."""
    with place.find().repository() as repository:
        rows = [report.summary(job) for job in repository.list_jobs(limit)]
    columns = ["job", "name", "state", "model", "rows", "done", "errored", "output"]
    terminal.write_rows(rows, columns, as_json=json or not terminal.is_terminal())


def status(job: JobArgument, json: JsonOption = False) -> None:
    """Say where a job stands, and which process is missing if it cannot go on."""
    found = place.find()
    with found.repository() as repository:
        told = client.status(found, repository, job)
    if json or not terminal.is_terminal():
        terminal.write_json(told)
    else:
        rows = [{"what": name, "value": value} for name, value in told.items()]
        terminal.write_rows(rows, ["what", "value"], as_json=False)
    for line in told["missing"]:
        terminal.say(line)


def watch(
    job: JobArgument,
    timeout: Annotated[float | None, typer.Option(help="Give up after so many seconds (exit 124).")] = None,
) -> None:
    """Follow a job until it ends; a bar on a terminal, JSON lines in a pipe. Ctrl-C leaves the job alone."""
    from jobs import progress
    from storage.records import JobId

    tell = None if terminal.is_terminal() else lambda moment: terminal.write_json(moment.as_line())
    found = place.find()
    with found.repository() as repository:
        try:
            ended = progress.follow(
                repository, JobId(job), poll_seconds=found.settings.watch_seconds, timeout=timeout, tell=tell
            )
        except KeyboardInterrupt:
            raise Interrupted(f"job {job} goes on; follow it with: nightmill watch {job}") from None
    raise typer.Exit(of_job(ended))


def results(
    job: Annotated[int | None, typer.Argument(metavar="[JOB]", help="The id that submit printed.")] = None,
    dataset: Annotated[
        Path | None, typer.Option("--dataset", metavar="DIR", help="What is current of a data set, instead of a job.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many rows.")] = None,
    errors: Annotated[bool, typer.Option("--errors", help="Only rows that failed.")] = False,
    format: Annotated[str | None, typer.Option(help="table, jsonl or parquet.")] = None,
    to: Annotated[Path | None, typer.Option(help="Write to this file instead of stdout.")] = None,
) -> None:
    """Print the published rows of a job, or of all current runs of a data set with the label of each in `dt`: a table
    on a terminal, JSON lines in a pipe. Reads what the manifest, or current.json, lists."""
    from jobs.results import shorten

    wanted = format or ("jsonl" if to or not terminal.is_terminal() else "table")
    if wanted not in ("table", "jsonl", "parquet"):
        raise UsageError(f"--format is {wanted!r}; use table, jsonl or parquet")
    if wanted == "parquet" and to is None:
        raise UsageError("--format parquet needs --to FILE")
    found = _results(job, dataset, errors=errors, limit=limit)
    if to is not None:
        try:
            written = found.write_parquet(to) if wanted == "parquet" else found.write_jsonl(to)
        except OSError as error:
            raise UsageError(f"--to {to} cannot be written: {error.strerror or error}") from error
        terminal.say(f"{written} rows written to {to}")
    else:
        rows = found.rows() if wanted == "jsonl" else (shorten(row, found.table_columns) for row in found.rows())
        terminal.write_rows(rows, found.table_columns, as_json=wanted == "jsonl")


def _results(job: int | None, dataset: Path | None, *, errors: bool, limit: int | None) -> Results:
    from jobs.results import Results
    from storage.records import JobId

    if (job is None) == (dataset is None):
        raise UsageError("name either a job, by its id, or a data set with --dataset DIR")
    if dataset is not None:
        return Results.of_dataset(dataset, errors_only=errors, limit=limit)
    with place.find().repository() as repository:
        assert job is not None, "one of them is given"
        return Results.of(repository.get_job(JobId(job)), errors_only=errors, limit=limit)


def stats(
    job: JobArgument,
    generation: Annotated[
        int | None, typer.Option(help="Of the rows that ran for this generation of the results; else of all.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Print what a job cost, what the cache saved and was planned to save, and what limited it, by layer group too."""
    with place.find().repository() as repository:
        told = client.stats(repository, job, generation)
    if json or not terminal.is_terminal():
        terminal.write_json(told)
        return
    apart = ("job", "limited_by", "groups")
    overall = [{"counter": name, "value": value} for name, value in told.items() if name not in apart]
    terminal.write_rows(overall, ["counter", "value"], as_json=False, title=f"job {job}")
    if told["limited_by"]:
        limits = [{"limited by": name, "tokens": tokens} for name, tokens in told["limited_by"].items()]
        title = "prompt tokens that did not come from the cache"
        terminal.write_rows(limits, ["limited by", "tokens"], as_json=False, title=title)
    if told["groups"]:
        groups = [{name.removeprefix("blocks_"): value for name, value in group.items()} for group in told["groups"]]
        terminal.write_rows(groups, list(groups[0]), as_json=False, title="blocks of each layer group")
