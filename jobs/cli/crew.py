"""Commands about workers: which there are and how they are, and how one leaves in peace."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from jobs import place
from jobs.cli import terminal
from jobs.exits import UsageError

COLUMNS = ["worker", "state", "model", "device", "heartbeat_age", "loop_age", "step_age", "notice"]


def add_to(app: typer.Typer) -> None:
    for command in (workers, drain):
        app.command()(command)


def workers(
    all_: Annotated[bool, typer.Option("--all", help="Also those that were not heard of lately.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON also on a terminal.")] = False,
) -> None:
    """List the processes that serve, with the seconds since each was heard of and last showed that it lives."""
    found = place.find()
    with found.repository() as repository:
        records = repository.workers(None if all_ else found.settings.worker_stale_seconds)
    rows: list[dict[str, Any]] = [
        {
            "worker": record.id,
            "state": "draining" if record.drain_requested and record.state == "ready" else record.state,
            "model": record.model_source,
            "device": record.device,
            "heartbeat_age": round(record.heartbeat_age, 3),
            "loop_age": _seconds(record.loop_age),
            "step_age": _seconds(record.step_age),
            "notice": record.notice,
        }
        for record in records
    ]
    terminal.write_rows(rows, COLUMNS, as_json=json or not terminal.is_terminal())


def drain(
    worker: Annotated[str | None, typer.Argument(help="Its name, as `nightmill workers` shows it.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every live worker.")] = False,
) -> None:
    """Let a worker finish the shards that it has, take no new one, and leave with 0."""
    if (worker is None) != all_:
        raise UsageError("name one worker, or --all; `nightmill workers` shows them")
    found = place.find()
    if found.settings.embedded:
        raise UsageError("in embedded mode the worker belongs to its submit: Ctrl-C seals its work and stops it")
    with found.repository() as repository:
        asked = repository.request_drain(worker, found.settings.worker_stale_seconds)
    if not asked and worker is not None:
        raise UsageError(f"no live worker is called {worker}; `nightmill workers` shows them")
    terminal.say(
        f"{', '.join(asked) or 'no live worker'}: no new shard is taken; each leaves when its shards have ended"
    )


def _seconds(age: float | None) -> float | None:
    return None if age is None else round(max(age, 0.0), 3)
