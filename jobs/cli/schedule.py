"""`nightmill schedule ...`: data sets that are made again and again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs import place
from jobs.cli import terminal
from jobs.exits import UsageError

if TYPE_CHECKING:
    from jobs.schedules.actions import Change
    from storage.repository import Repository

schedule = typer.Typer(help="Data sets that are made again and again.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON also on a terminal.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait for the end; the exit code says how it went.")]
TimeoutOption = Annotated[float | None, typer.Option(help="Wait so many seconds at most (exit 124).")]


def add_to(app: typer.Typer) -> None:
    app.add_typer(schedule, name="schedule")


@schedule.command()
def add(
    name: Name,
    cron: Annotated[str, typer.Option(help="Minute, hour, day, month, weekday: '30 2 * * *'.")],
    input: Annotated[list[str], typer.Option(help="Parquet files; {ds} is the date. May be repeated.")],
    dataset: Annotated[str, typer.Option(help="The folder of the data set.")],
    model: Annotated[str, typer.Option(help="Hub id, local directory or GGUF file.")],
    zone: Annotated[str, typer.Option(help="Time zone, like Europe/Berlin.")] = "UTC",
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other option of schedules.toml, like job.max_tokens=64. May be repeated."),
    ] = None,
) -> None:
    """Declare a schedule; it fires from now on. The same can be written in a file, see `schedule apply`."""
    from jobs.schedules import actions
    from jobs.schedules.spec import parse_schedule, set_options

    table = {"cron": cron, "zone": zone, "input": list(input), "dataset": dataset, "model": model}
    try:
        declared = parse_schedule(name, set_options(table, set or []), Path.cwd())
    except ValueError as error:
        raise UsageError(str(error)) from error
    found = place.find()
    with found.repository() as repository:
        added = actions.add(repository, declared)
    slot = actions.upcoming(added)
    terminal.say(f"schedule {name} is added; it fires next for {slot.label if slot else 'no date'}")
    _tell_what_is_missing(found)


@schedule.command("list")
def list_schedules(json: JsonOption = False) -> None:
    """List the schedules, with the slot that comes next and the run that was last."""
    from jobs.schedules import actions

    with place.find().repository() as repository:
        rows = []
        for each in repository.schedules():
            slot = None if each.paused else actions.upcoming(each)
            last = next(iter(repository.runs(each.id, limit=1)), None)
            rows.append(
                {
                    "schedule": each.name,
                    "cron": each.declared.cron,
                    "zone": each.declared.zone,
                    "next": None if slot is None else slot.label,
                    "next_at": None if slot is None else slot.instant.isoformat(),
                    "last": None if last is None else last.label,
                    "last_state": None if last is None else last.state.value,
                    "paused": each.paused,
                    "dataset": each.declared.dataset,
                }
            )
    columns = ["schedule", "cron", "zone", "next", "last", "last_state", "paused", "dataset"]
    terminal.write_rows(rows, columns, as_json=json or not terminal.is_terminal())


@schedule.command()
def show(
    name: Name,
    limit: Annotated[int, typer.Option(min=1, help="At most so many runs.")] = 20,
    json: JsonOption = False,
) -> None:
    """Show what is declared and how the last runs went, newest first."""
    from jobs.schedules import actions
    from jobs.schedules.spec import differences

    with place.find().repository() as repository:
        found = repository.get_schedule(name)
        rows = [actions.as_row(run) for run in repository.runs(found.id, limit=limit)]
    options = dict(line[2:].split(": ", 1) for line in differences(None, found.declared))
    if json or not terminal.is_terminal():
        left_out = None if found.left_out is None else dict(zip(("after", "before"), found.left_out, strict=True))
        shown = {"schedule": name, "paused": found.paused, "left_out": left_out, "options": options, "runs": rows}
        terminal.write_json(shown)
        return
    if found.left_out is not None:
        after, before = found.left_out
        terminal.say(f"too many slots came due at once: those after {after} and before {before} are in no run")
        terminal.say(f"`nightmill schedule backfill {name} --from {after[:10]} --to {before[:10]}` makes up for them")
    terminal.write_rows(
        [{"what": key, "value": value} for key, value in options.items()], ["what", "value"], as_json=False
    )
    columns = ["label", "state", "cause", "attempt", "job", "failed_gates", "finished_at", "reason"]
    terminal.write_rows(rows, columns, as_json=False)


@schedule.command()
def pause(name: Name) -> None:
    """Let nothing of it come due or start; runs at work go on."""
    with place.find().repository() as repository:
        repository.pause_schedule(name)
    terminal.say(f"schedule {name} is paused; `nightmill schedule resume {name}` lets it go on")


@schedule.command()
def resume(name: Name) -> None:
    """Let it fire again from now on; what came due meanwhile is left to a backfill."""
    from jobs.schedules import actions

    with place.find().repository() as repository:
        slot = actions.upcoming(actions.resume(repository, name))
    terminal.say(f"schedule {name} fires next for {slot.label if slot else 'no date'}")


@schedule.command()
def remove(name: Name) -> None:
    """Forget a schedule. Its data set and the history of its runs stay; a run at work ends as ever."""
    with place.find().repository() as repository:
        repository.remove_schedule(name)
    terminal.say(f"schedule {name} is removed; its data set stays")


@schedule.command()
def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="Tables [schedules.NAME].")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove schedules that the file does not name.")] = False,
) -> None:
    """Make the schedules what a file says: shows the differences first, then asks."""
    from jobs.schedules import actions

    wanted = actions.read_file(file)
    found = place.find()
    with found.repository() as repository:
        planned = actions.changes(repository, wanted, prune=prune)
        for change in planned:
            _show(change)
        if not planned:
            terminal.say(f"nothing to change: the schedules are as {file} says")
        elif dry_run:
            terminal.say("dry run: nothing was changed")
        else:
            _confirm(yes)
            for change in planned:
                actions.apply(repository, change)
            terminal.say(f"{len(planned)} schedules changed")
        _tell_others(repository, [new.name for new in wanted])
    _tell_what_is_missing(found)


def _show(change: Change) -> None:
    """On stdout, so that a diff can be kept."""
    import sys

    what = "removed" if change.new is None else "added" if change.old is None else "changed"
    sys.stdout.write(f"schedule {change.name} is {what}\n" + "".join(f"  {line}\n" for line in change.lines))
    sys.stdout.flush()


def _confirm(yes: bool) -> None:
    import sys

    if yes:
        return
    if not (sys.stdin.isatty() and terminal.is_terminal()):
        raise UsageError("nobody can be asked here, so nothing was changed: give --yes, or --dry-run to look only")
    if not typer.confirm("Apply?", err=True):
        raise typer.Exit(0)


def _tell_others(repository: Repository, names: list[str]) -> None:
    others = [each.name for each in repository.schedules() if each.name not in names]
    if others:
        terminal.say(f"left alone, since the file does not name them: {', '.join(others)} (--prune removes them)")


def _tell_what_is_missing(found: place.Place) -> None:
    from jobs.cli.runs import missing

    for line in missing(found):
        terminal.say(line)


@schedule.command()
def run(
    name: Name,
    date: Annotated[str | None, typer.Option(help="The label to run; by default the newest that has come.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Also when it has succeeded.")] = False,
    wait: WaitOption = False,
    wait_timeout: TimeoutOption = None,
) -> None:
    """Run one date now."""
    from jobs.cli import runs
    from jobs.schedules import actions

    found = place.find()
    with found.repository() as repository:
        queued = actions.run_now(repository, name, date, again=again)
        terminal.say(f"run {queued.label} of schedule {name} is queued")
        waits = wait or wait_timeout is not None
        raise typer.Exit(runs.see_to(found, repository, [queued], waits=waits, timeout=wait_timeout))


@schedule.command()
def backfill(
    name: Name,
    first: Annotated[str, typer.Option("--from", help="First date.")],
    last: Annotated[str, typer.Option("--to", help="Last date, included.")],
    which: Annotated[
        Literal["missing", "errored", "all"],
        typer.Option(help="Dates without a run; also those that did not succeed; or all, once."),
    ] = "missing",
    order: Annotated[Literal["forwards", "backwards"], typer.Option(help="Oldest or newest first.")] = "forwards",
    max_active: Annotated[int | None, typer.Option(min=1, help="Runs at once (the schedule's).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would run.")] = False,
    wait: WaitOption = False,
    wait_timeout: TimeoutOption = None,
) -> None:
    """Run the dates of a range. Repeating a finished backfill does nothing."""
    from jobs.cli import runs
    from jobs.schedules import actions
    from jobs.schedules.spec import day_of

    try:
        days = day_of(first), day_of(last)
    except ValueError as error:
        raise UsageError(str(error)) from error
    found = place.find()
    with found.repository() as repository:
        plan = actions.plan_backfill(repository, name, *days, which=which, order=order, max_active=max_active)
        if dry_run:
            ordered = plan.chosen if order == "forwards" else plan.chosen[::-1]
            rows = [{"label": slot.label, "logical_time": slot.instant.isoformat()} for slot in ordered]
            terminal.write_rows(rows, ["label", "logical_time"], as_json=not terminal.is_terminal())
            terminal.say(f"dry run: {len(plan.chosen)} of {plan.in_range} dates would run")
            return
        queued = actions.start_backfill(repository, plan)
        terminal.say(f"{len(queued)} of {plan.in_range} dates of schedule {name} are queued")
        waits = wait or wait_timeout is not None
        raise typer.Exit(runs.see_to(found, repository, queued, waits=waits, timeout=wait_timeout))
