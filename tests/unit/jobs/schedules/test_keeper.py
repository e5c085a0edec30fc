from __future__ import annotations

import pytest

from jobs.schedules.keeper import ScheduleKeeper
from storage.states import RunState
from tests.unit.jobs.schedules.office import Office


def test_schedules_are_looked_at_from_time_to_time_and_when_somebody_asks(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    keeper = ScheduleKeeper(office.settings, office.repository, "me", monotonic=lambda: now[0])
    ticks: list[float] = []
    monkeypatch.setattr(keeper, "_tick", lambda: ticks.append(now[0]))

    def look() -> None:
        keeper.look()
        keeper.wait()

    look()
    assert ticks == []  # there are no schedules
    office.add()
    for moment in (1.0, 2.0, 30.9, 31.0, 32.0):
        now[0] = moment
        look()
    keeper.wake()
    keeper.wait()

    assert ticks == [1.0, 31.0, 32.0]


def test_a_run_that_has_ended_is_settled_and_makes_room_for_the_next(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add(catch_up="all", cron="0 0 * * *")
    office.tick("2026-11-26T08:00:00")
    [first, second] = office.runs()
    assert (first.state, second.state) == (RunState.RUNNING, RunState.QUEUED)
    assert first.job_id is not None
    office.repository.fail_job(first.job_id, None, "x")
    keeper = ScheduleKeeper(office.settings, office.repository, "me")

    keeper.look()
    keeper.wait()
    keeper.wait()

    states = office.states()
    assert (states[first.label], states[second.label]) == (RunState.FAILED, RunState.RUNNING)
