"""A month that is made up for while workers are killed at random; and once more, when there is nothing left to do."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from jobs.schedules import actions
from storage.dataset.current import read_current
from storage.schedule_records import Schedule
from storage.states import RUN_FINAL, RunState
from tests.faults.harness import ROOT, Harness, WorkerProcess, speed, wait_for
from tests.faults.nights import check_nights, declare, runs_of

pytestmark = pytest.mark.integration

FIRST, LAST = date(2026, 2, 1), date(2026, 3, 2)  # 30 days
DAYS = 30


def ended(harness: Harness, schedule: Schedule) -> int:
    return sum(run.state in RUN_FINAL for run in runs_of(harness, schedule))


def ask(harness: Harness, schedule: Schedule) -> int:
    """For what is missing of the month; how many dates were queued."""
    plan = actions.plan_backfill(harness.repository, schedule.name, FIRST, LAST, order="backwards", max_active=8)
    return len(actions.start_backfill(harness.repository, plan))


def make_up_for_a_month(
    harness: Harness, schedule: Schedule, start_worker: Callable[[str], WorkerProcess], seconds: float
) -> None:
    """Until every date has succeeded, while one of two workers is killed now and then; and ask once more."""
    chance = random.Random(7)
    workers = [start_worker(f"w{number}") for number in range(2)]
    assert ask(harness, schedule) == DAYS
    for least in (1, 8, 15, 22):
        wait_for(lambda: ended(harness, schedule) >= least, f"{least} runs end", seconds)  # noqa: B023
        victim = chance.randrange(len(workers))
        workers[victim].kill()
        workers[victim] = start_worker(f"w{victim}")
    wait_for(lambda: ended(harness, schedule) == DAYS, "the backfill ends", seconds)

    runs = runs_of(harness, schedule)
    assert [run.state for run in runs] == [RunState.SUCCEEDED] * DAYS
    assert len(harness.repository.list_jobs(1000)) == DAYS
    assert ask(harness, schedule) == 0
    harness.stop()
    assert runs_of(harness, schedule) == runs
    assert len(read_current(harness.folder / f"data-{schedule.name}").runs) == DAYS


def test_a_month_is_made_up_for_while_workers_are_killed_and_asking_again_does_nothing(tmp_path: Path) -> None:
    with Harness.create(tmp_path, schedule_tick_seconds=0.2) as harness:
        schedule = declare(harness, cron="30 2 * * *", max_active=1)

        make_up_for_a_month(harness, schedule, lambda name: harness.start_worker(name, **speed(40)), 60.0)

        check_nights(harness, schedule)


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.timeout(1800)
def test_a_month_is_made_up_for_by_a_real_model_while_workers_are_killed(tmp_path: Path) -> None:
    model = ROOT / ".cache" / "models" / "smollm2-135m"
    real = {"engine_factory": "jobs.engines:real_engine", "lease_seconds": 20.0, "heartbeat_seconds": 2.0}
    with Harness.create(tmp_path, schedule_tick_seconds=0.2, **real) as harness:
        options = {"model": str(model), "job": {"max_tokens": 4, "shard_rows": 4}}
        schedule = declare(harness, cron="30 2 * * *", max_active=1, **options)

        make_up_for_a_month(harness, schedule, lambda name: harness.start_worker(name, str(model)), 1200.0)
