"""Schedules in a harness, and what must hold of their runs whatever happened."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jobs.schedules import actions
from jobs.schedules.spec import parse_schedule
from storage.dataset.current import read_current
from storage.schedule_records import Run, Schedule
from storage.states import RunState
from tests.faults.harness import MAX_TOKENS, Harness, keys, prompts, wait_for

ROWS = 6
EVERY_TWO_SECONDS = "*/2 * * * * *"


def declare(
    harness: Harness, name: str = "nightly", cron: str = EVERY_TWO_SECONDS, cursor: str | None = None, **changes: Any
) -> Schedule:
    """A schedule over a small input, from now on, or from `cursor` on."""
    table: dict[str, Any] = {
        "cron": cron,
        "input": str(harness.write_input(prompts(ROWS), "nights")),
        "dataset": f"data-{name}",
        "model": str(harness.model),
        "max_active": 50,
        "job": {"max_tokens": MAX_TOKENS, "shard_rows": 4},
    }
    declared = parse_schedule(name, table | changes, harness.folder)
    if cursor is not None:
        return harness.repository.add_schedule(declared, cursor)
    return actions.add(harness.repository, declared)


def runs_of(harness: Harness, schedule: Schedule) -> list[Run]:
    """Oldest label first."""
    return harness.repository.runs(schedule.id)[::-1]


def succeeded(harness: Harness, schedule: Schedule) -> list[str]:
    return [run.label for run in runs_of(harness, schedule) if run.state == RunState.SUCCEEDED]


def wait_for_labels(harness: Harness, schedule: Schedule, num: int) -> None:
    """Until so many runs have succeeded."""

    def enough() -> bool:
        return len(succeeded(harness, schedule)) >= num

    try:
        wait_for(enough, f"{num} runs of {schedule.name} succeed")
    except AssertionError as error:
        logs = "\n".join(f"--- {worker.name}\n{worker.text[-3000:]}" for worker in harness.workers)
        raise AssertionError(f"{error}: {runs_of(harness, schedule)}\n{logs}") from error


def check_nights(harness: Harness, schedule: Schedule) -> None:
    """One run and one job per label; each that has succeeded is whole, and is what is current of the data set."""
    runs = runs_of(harness, schedule)
    labels = Counter(run.label for run in runs)
    assert set(labels.values()) <= {1}, labels
    jobs = [job for job in harness.repository.list_jobs(10_000) if job.tags.get("schedule") == schedule.name]
    assert sorted(job.tags["label"] for job in jobs) == sorted(run.label for run in runs if run.job_id is not None)
    harness.repository.check_integrity()
    for run in runs:
        if run.state == RunState.SUCCEEDED and run.job_id is not None:
            harness.check(run.job_id, keys(ROWS))
    current = {run.label: run.run for run in read_current(harness.folder / f"data-{schedule.name}").runs}
    assert current == {run.label: run.run_id for run in runs if run.state == RunState.SUCCEEDED}
