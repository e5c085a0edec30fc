from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import pytest

from jobs.schedules.backfill import AGAIN, Which, backfill_key, choose, queued
from jobs.schedules.cron import Cron
from storage.schedule_records import Run, RunRowId, ScheduleId
from storage.states import RUN_OPEN, RunState
from tests.conformance.schedules import new_schedule

NIGHTS = Cron.parse("0 0 * * *", "UTC").between(date(2026, 11, 1), date(2026, 11, 4))
LABELS = [slot.label for slot in NIGHTS]


def run(label: str, state: RunState, **changes: Any) -> Run:
    moment = datetime(2026, 11, 1, tzinfo=UTC)
    values: dict[str, Any] = {
        "id": RunRowId(1),
        "schedule_id": ScheduleId(1),
        "schedule": "nightly",
        "label": label,
        "slot": label,
        "logical_time": moment,
        "state": state,
        "cause": "schedule",
        "attempt": 1,
        "run_id": None,
        "job_id": None,
        "max_active": 1,
        "rank": 0,
        "backfill": None,
        "wait_until": None,
        "epoch": 0,
        "gates": None,
        "reason": None,
        "created_at": moment,
        "started_at": None,
        "finished_at": None,
    }
    return Run(**values | changes)


def chosen(which: Which, *states: RunState | None, backfill: str | None = None) -> list[str]:
    """The days of the first nights that are to be done; a night of None has no run."""
    runs = {label: run(label, state, backfill=backfill) for label, state in zip(LABELS, states, strict=False) if state}
    return [slot.label[-2:] for slot in choose(NIGHTS[: len(states)], runs, which, "key")]


@pytest.mark.parametrize(
    ("which", "days"),
    [("missing", ["01", "02"]), ("errored", ["01", "02", "03"]), ("all", ["01", "02", "03", "04"])],
)
def test_a_backfill_takes_what_it_is_asked_for(which: Which, days: list[str]) -> None:
    assert chosen(which, None, RunState.MISSED, RunState.GATES_FAILED, RunState.SUCCEEDED) == days


@pytest.mark.parametrize("which", ["missing", "errored", "all"])
def test_a_run_that_is_open_is_never_begun_a_second_time(which: Which) -> None:
    assert [chosen(which, state) for state in sorted(RUN_OPEN)] == [[]] * len(RUN_OPEN)


@pytest.mark.parametrize("which", ["missing", "errored", "all"])
def test_a_finished_backfill_has_nothing_left_to_do(which: Which) -> None:
    assert chosen(which, *[RunState.SUCCEEDED] * 4, backfill="key") == []


def test_only_a_backfill_of_everything_repeats_what_has_succeeded() -> None:
    assert chosen("all", RunState.SUCCEEDED, backfill="another") == ["01"]
    assert [which for which in AGAIN if RunState.SUCCEEDED in AGAIN[which]] == ["all"]


def test_the_key_of_a_backfill_follows_its_range_and_the_schedule() -> None:
    declared = new_schedule()
    key = backfill_key(declared, "2026-11-01", "2026-11-04", "all")

    others = [
        backfill_key(declared, "2026-11-01", "2026-11-05", "all"),
        backfill_key(declared, "2026-11-01", "2026-11-04", "missing"),
        backfill_key(replace(declared, job={"model": "other"}), "2026-11-01", "2026-11-04", "all"),
    ]

    assert key == backfill_key(declared, "2026-11-01", "2026-11-04", "all")
    assert len({key, *others}) == 4


def test_runs_are_queued_in_the_order_that_was_asked_for() -> None:
    backwards = queued(NIGHTS, key="key", order="backwards", max_active=3)

    assert [run.label for run in sorted(backwards, key=lambda run: run.rank)] == LABELS[::-1]
    assert [run.label for run in queued(NIGHTS, key="key", order="forwards", max_active=3)] == LABELS
    assert {(run.state, run.cause, run.backfill, run.max_active) for run in backwards} == {
        (RunState.QUEUED, "backfill", "key", 3)
    }
