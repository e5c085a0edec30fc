"""Ticks that meet each other or a change, or die half-way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from jobs.schedules.tick import Ticker
from jobs.submission import submission_of
from storage.states import RunState
from tests.unit.jobs.schedules.office import Office

WEDNESDAY = "2026-11-25"
RUNNING = RunState.RUNNING


def overtake(ticker: Ticker, meanwhile: Callable[[], object]) -> None:
    """`meanwhile` happens once, while the ticker reads its input."""
    real = ticker._prepare

    def overtaken(*arguments: Any) -> Any:
        ticker._prepare = real
        meanwhile()
        return real(*arguments)

    ticker._prepare = overtaken


def test_two_ticks_that_decide_at_the_same_time_make_one_run(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add()
    office.at(f"{WEDNESDAY}T00:00:10")
    other = office.ticker()
    overtake(other, office.tick)

    other.tick()

    assert office.states() == {WEDNESDAY: RUNNING}
    assert len(office.repository.list_jobs()) == 1


@pytest.mark.parametrize("after", [True, False], ids=["after-its-insert", "before-its-insert"])
def test_a_tick_that_dies_leaves_the_run_to_the_next_or_its_job_to_any_planner(office: Office, after: bool) -> None:
    office.write("in/a.parquet", "one")
    office.add()
    real = office.repository.fire

    def dies(*arguments: Any, **options: Any) -> None:
        if after:
            real(*arguments, **options)
        raise KeyboardInterrupt

    office.repository.fire = dies  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        office.tick(f"{WEDNESDAY}T00:00:10")
    office.repository.fire = real  # type: ignore[method-assign]
    assert office.states() == ({WEDNESDAY: RUNNING} if after else {})

    office.tick()
    office.tick()

    assert office.states() == {WEDNESDAY: RUNNING}
    assert [job.id for job in office.repository.unplanned_jobs(60.0)] == [office.job_of(WEDNESDAY).id]
    assert len(office.repository.list_jobs()) == 1


def test_a_tick_that_read_its_input_while_the_schedule_was_changed_starts_nothing_of_the_old(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add()
    office.at(f"{WEDNESDAY}T00:00:10")
    stale = office.ticker()

    def change() -> None:
        seen = office.repository.get_schedule("nightly")
        job = {**seen.declared.job, "options": {"max_tokens": 9}}
        office.repository.change_schedule(seen, replace(seen.declared, job=job))

    overtake(stale, change)

    stale.tick()
    assert office.states() == {}
    office.tick()

    assert office.states() == {WEDNESDAY: RUNNING}
    assert submission_of(office.job_of(WEDNESDAY), office.settings).options.sampling.params.max_tokens == 9
