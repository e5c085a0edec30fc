"""Follow a job to its end: a bar on a terminal, a line now and then elsewhere; everything on stderr.

The database is asked; nothing else is: a job is followed from any machine that reaches it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from jobs import report
from jobs.exits import TimedOut
from storage.changes import Changes
from storage.records import Job, JobId, RunStats
from storage.states import JOB_FINAL, JobState

if TYPE_CHECKING:
    from storage.repository import Repository


SPEED_SECONDS = 30.0  # the window of the shown speed: a pause of the worker must be seen
QUIET_POLLS = 10  # after which the job is read although nobody has written: its speed has fallen


@dataclass(frozen=True, slots=True)
class Moment:
    """A job as it was seen once, with its speed of the last half minute; of an ended job, over its whole run."""

    job: Job
    stats: RunStats
    tokens_per_second: float | None

    def as_line(self) -> dict[str, object]:
        """One JSON line of `nightmill watch`."""
        return {
            "job": int(self.job.id),
            "state": self.job.state.value,
            "rows": self.job.rows_total,
            "done": self.job.rows_done,
            "errored": self.job.rows_errored,
            "tokens_per_second": self.tokens_per_second,
            "hit_rate": report.hit_rate(self.stats),
        }


def moments(
    repository: Repository,
    job_id: JobId,
    *,
    poll_seconds: float,
    timeout: float | None,
    check: Callable[[], None] | None = None,
) -> Iterator[Moment]:
    """The job again and again until it has ended, whenever it may have changed; `check` every `poll_seconds`.

    Raises NoSuchJob, TimedOut, and what `check` raises.
    """
    started = time.monotonic()
    deadline = math.inf if timeout is None else started + timeout
    seen: deque[tuple[float, int]] = deque()
    with Changes(repository.file) as changes:
        changes.seen()
        while True:
            job, stats = repository.get_job(job_id), repository.job_stats(job_id)
            now = time.monotonic()
            seen.append((now, stats.completion_tokens))
            while now - seen[0][0] > SPEED_SECONDS:
                seen.popleft()
            yield Moment(job, stats, _overall_speed(job, stats) if job.state in JOB_FINAL else _recent_speed(seen))
            if job.state in JOB_FINAL:
                return
            if now >= deadline:
                again = f"follow it with: nightmill watch {job_id}"
                raise TimedOut(f"job {job_id} is {job.state.value} after {timeout:g} s; it goes on; {again}")
            _rest(changes, poll_seconds, deadline, check)


def _rest(changes: Changes, poll_seconds: float, deadline: float, check: Callable[[], None] | None) -> None:
    for _ in range(QUIET_POLLS):
        if check is not None:
            check()
        time.sleep(max(0.0, min(poll_seconds, deadline - time.monotonic())))
        if changes.seen() or time.monotonic() >= deadline:
            return


def _recent_speed(seen: Sequence[tuple[float, int]]) -> float | None:
    """New tokens per second from the first to the last look; None until there are some."""
    (before, had), (now, has) = seen[0], seen[-1]
    return (has - had) / (now - before) if has > had else None


def _overall_speed(job: Job, stats: RunStats) -> float | None:
    if job.started_at is None or job.finished_at is None or job.finished_at <= job.started_at:
        return None
    return stats.completion_tokens / (job.finished_at - job.started_at).total_seconds()


def follow(
    repository: Repository,
    job_id: JobId,
    *,
    poll_seconds: float,
    timeout: float | None = None,
    tell: Callable[[Moment], None] | None = None,
    check: Callable[[], None] | None = None,
) -> Job:
    """Show the job until it has ended, and return it. `tell` replaces the display; `check` is called every
    `poll_seconds` and may raise (the owner of embedded mode has died). Raises NoSuchJob, TimedOut."""
    with _display() if tell is None else nullcontext(_OnChange(tell)) as show:
        for moment in moments(repository, job_id, poll_seconds=poll_seconds, timeout=timeout, check=check):
            show(moment)
    return moment.job


class _OnChange:
    """Pass on a moment when its state or its count of rows is another than before."""

    def __init__(self, tell: Callable[[Moment], None]) -> None:
        self._tell = tell
        self._last: tuple[JobState, int] | None = None

    def __call__(self, moment: Moment) -> None:
        seen = (moment.job.state, moment.job.rows_done)
        if seen != self._last:
            self._last = seen
            self._tell(moment)


@contextmanager
def _display() -> Iterator[Callable[[Moment], None]]:
    """A bar where stderr is a terminal; plain lines elsewhere, so that a log stays readable."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _OnChange(lambda moment: console.print(_plain(moment), soft_wrap=True))
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TextColumn("hits {task.fields[hits]}"),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None, speed="- tok/s", hits="-")

        def show_bar(moment: Moment) -> None:
            bar.update(
                task,
                description=f"job {moment.job.id} {moment.job.state.value}",
                total=moment.job.rows_total or None,
                completed=moment.job.rows_done,
                speed=_speed(moment),
                hits=_hits(moment),
            )

        yield show_bar


def _plain(moment: Moment) -> str:
    job = moment.job
    return (
        f"job {job.id} {job.state.value}: {job.rows_done}/{job.rows_total} rows, {_speed(moment)}, hits {_hits(moment)}"
    )


def _speed(moment: Moment) -> str:
    return "- tok/s" if moment.tokens_per_second is None else f"{moment.tokens_per_second:,.0f} tok/s"


def _hits(moment: Moment) -> str:
    rate = report.hit_rate(moment.stats)
    return "-" if rate is None else f"{rate:.0%}"
