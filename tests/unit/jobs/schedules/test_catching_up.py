"""Slots that nobody looked at in time."""

from __future__ import annotations

import pytest

from storage.states import RunState
from tests.unit.jobs.schedules.office import Office

WEDNESDAY, THURSDAY, FRIDAY = "2026-11-25", "2026-11-26", "2026-11-27"
RUNNING, QUEUED = RunState.RUNNING, RunState.QUEUED
WEBHOOK = {"webhook_url": "https://hooks.example/x", "webhook_secret_env": "SECRET"}


@pytest.mark.parametrize(
    ("catch_up", "wanted"),
    [
        ("none", [RunState.MISSED, RunState.MISSED, RunState.MISSED]),
        ("latest", [RunState.MISSED, RunState.MISSED, RUNNING]),
        ("all", [RUNNING, QUEUED, QUEUED]),
    ],
)
def test_three_midnights_without_a_tick_are_caught_up_as_the_schedule_says(
    office: Office, catch_up: str, wanted: list[RunState]
) -> None:
    office.write("in/a.parquet", "one")
    office.add(catch_up=catch_up)

    office.tick(f"{FRIDAY}T08:00:00")
    office.tick(f"{FRIDAY}T08:00:30")

    assert office.states() == dict(zip((WEDNESDAY, THURSDAY, FRIDAY), wanted, strict=True))


@pytest.mark.parametrize(("limit", "caught_up", "first"), [(2, 2, "00-04"), (4, 4, "00-03")])
def test_of_more_slots_than_are_recorded_at_once_it_is_said_which_were_left_out(
    office: Office, caplog: pytest.LogCaptureFixture, limit: int, caught_up: int, first: str
) -> None:
    office.settings = office.settings.model_copy(update={"schedule_slots": 3})
    office.at("2026-11-24T23:59:30")
    office.write("in/a.parquet", "one")
    office.add(cron="* * * * *", catch_up="all", catch_up_limit=limit)

    office.at(f"{WEDNESDAY}T00:06:30")
    office.settings = office.settings.model_copy(update={"schedule_grace_seconds": 0.0})
    office.tick()

    states = office.states()
    assert (min(states)[-5:], max(states)[-5:]) == (first, "00-06")
    assert sum(state in (RUNNING, QUEUED) for state in states.values()) == caught_up
    left_out = ("2026-11-24T23:59:30", f"{WEDNESDAY}T{first.replace('-', ':')}:00")
    assert office.repository.get_schedule("nightly").left_out == left_out
    assert "slots left out schedule=nightly after=2026-11-24T23:59:30" in caplog.text


def test_as_many_slots_as_are_recorded_at_once_leave_none_out(office: Office) -> None:
    office.settings = office.settings.model_copy(update={"schedule_slots": 3})
    office.write("in/a.parquet", "one")
    office.add(catch_up="all", catch_up_limit=3)

    office.tick(f"{FRIDAY}T08:00:00")

    assert list(office.states()) == [WEDNESDAY, THURSDAY, FRIDAY]
    assert office.repository.get_schedule("nightly").left_out is None


def test_only_the_newest_of_many_missed_slots_tells_the_webhook(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add(catch_up="none", terms=WEBHOOK)

    office.tick(f"{FRIDAY}T08:00:00")

    assert [run.notice for run in office.runs()] == [None, None, "missed"]
    assert "nobody ticked" in str(office.run(FRIDAY).reason)
