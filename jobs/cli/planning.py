"""A bar while the input is read and the plan is written; nothing where stderr is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jobs.cli import terminal

WORDS = {
    "compare": "looking for new rows",
    "read": "reading prompts",
    "write": "writing the plan",
    "wait": "waiting for another submit of this job",
}


@contextmanager
def planning_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Gives the progress callback of `jobs.submit`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal.STDERR, transient=True, disable=not terminal.STDERR.is_terminal) as bar:
        task = bar.add_task(WORDS["read"], total=None)

        def show(stage: str, done: int, total: int) -> None:
            bar.update(task, description=WORDS.get(stage, stage), completed=done, total=total or None)

        yield show
