"""Runs that a command has queued: who sees to them, and how they end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from jobs.cli import terminal
from jobs.client import Check, staff
from jobs.exits import Exit, Interrupted
from jobs.place import Place
from storage.repository import Repository
from storage.schedule_records import Run
from storage.states import RunState

_EXITS = {
    RunState.SUCCEEDED: Exit.DONE,
    RunState.NO_INPUT: Exit.INPUT_INVALID,
    RunState.CANCELLED: Exit.CANCELLED,
    RunState.SKIPPED: Exit.CANCELLED,
    RunState.MISSED: Exit.CANCELLED,
    RunState.GATES_FAILED: Exit.JOB_FAILED,
    RunState.FAILED: Exit.JOB_FAILED,
}
_WORST_FIRST = (Exit.JOB_FAILED, Exit.INPUT_INVALID, Exit.CANCELLED, Exit.DONE)


def see_to(place: Place, repository: Repository, queued: Sequence[Run], *, waits: bool, timeout: float | None) -> Exit:
    """Let somebody look at the runs now, and follow them to their end where asked for. The exit code."""
    from jobs.schedules.actions import as_row, follow

    if not waits:
        _ask_for_a_tick(place)
        for line in missing(place):
            terminal.say(line)
        return Exit.DONE
    ends = []
    with _at_work(place) as check:
        wanted = [run.id for run in queued]
        poll = place.settings.watch_seconds
        for run in follow(repository, wanted, poll_seconds=poll, timeout=timeout, check=check):
            terminal.say(f"run {run.label} is {run.state.value}" + (f": {run.reason}" if run.reason else ""))
            if run.state in _EXITS:
                terminal.write_json({"schedule": run.schedule, **as_row(run)})
                ends.append(_EXITS[run.state])
    return next((code for code in _WORST_FIRST if code in ends), Exit.DONE)


def missing(place: Place) -> list[str]:
    """What has to be started before a schedule can fire."""
    if place.settings.embedded:
        return [] if place.owner_alive else ["nothing runs here: start `nightmill up`, or let `--wait` see to it"]
    with place.repository() as repository:
        if staff(place, repository).reconciler:
            return []
    return ["no reconciler is live, so nothing comes due: start `nightmill reconciler`, or `nightmill up`"]


@contextmanager
def _at_work(place: Place) -> Iterator[Check]:
    """In embedded mode broker, reconciler and worker run while the block does; in real mode others see to that."""
    try:
        if place.settings.embedded:
            from jobs.embedded import running

            with running(place.settings) as check:
                _ask_for_a_tick(place)
                yield check
        else:
            _ask_for_a_tick(place)
            yield lambda: None
    except KeyboardInterrupt:
        raise Interrupted("interrupted: the runs stay queued, and whoever reconciles goes on with them") from None


def _ask_for_a_tick(place: Place) -> None:
    """Best effort: it is looked at anyway, only later."""
    from jobs.app import make_app
    from jobs.dispatch import BrokerDown
    from jobs.tasks import publish_tick

    if place.settings.embedded and not place.owner_alive:
        return
    with suppress(BrokerDown):
        publish_tick(make_app(place.broker_url, prefix=place.settings.redis_prefix))
