"""Rows 45 and 46: beats that are doubled, dead or killed, nights without any, an emptied broker, clocks that jump."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import redis

from jobs.schedules.prepare import NotYet
from jobs.schedules.tick import Ticker
from storage.schedule_records import Schedule
from storage.states import RunState
from tests.faults.clocks import ShiftedClock
from tests.faults.harness import Harness, WorkerProcess, wait_for
from tests.faults.nights import check_nights, declare, runs_of, succeeded, wait_for_labels

pytestmark = pytest.mark.integration

DAY = 86_400
RARELY = {"NIGHTMILL_SCHEDULE_TICK_SECONDS": "3600"}  # a process that looks at schedules only when it is asked to
OFTEN = {"NIGHTMILL_SCHEDULE_TICK_SECONDS": "0.2"}


@pytest.fixture
def nights(tmp_path: Path) -> Iterator[Harness]:
    """A harness in which reconcilers are processes, so that they can be killed."""
    with Harness.create(tmp_path, schedule_tick_seconds=0.2) as harness:
        harness.stop_reconciler()
        yield harness


def beat(harness: Harness, name: str, **environment: str) -> WorkerProcess:
    return harness.start_program(name, ["-m", "nightmill", "beat"], **{**OFTEN, **environment})


def let_it_end(harness: Harness, schedule: Schedule) -> None:
    """Nothing comes due any more, and what had begun ends: else a stop may come between the data set and SQL."""
    harness.repository.pause_schedule(schedule.name)
    wait_for(lambda: not harness.repository.active_runs(schedule.id), "what had begun ends")
    harness.stop()


def redis_of(harness: Harness) -> redis.Redis:
    return redis.Redis(unix_socket_path=harness.broker.url.removeprefix("redis+socket://"))


def test_45_two_beats_a_beat_that_is_killed_and_an_emptied_broker_change_nothing(nights: Harness) -> None:
    beats = [beat(nights, f"b{number}") for number in (1, 2)]
    for number in (1, 2):
        nights.start_reconciler_process(f"r{number}", **RARELY)
    nights.start_worker("w0")
    schedule = declare(nights)
    wait_for_labels(nights, schedule, 2)

    redis_of(nights).flushall()
    for each in beats:
        each.kill()
    beat(nights, "b3")

    wait_for_labels(nights, schedule, 4)
    let_it_end(nights, schedule)
    check_nights(nights, schedule)
    labels = [datetime.strptime(label, "%Y-%m-%dT%H-%M-%S") for label in succeeded(nights, schedule)]
    assert {later - sooner for sooner, later in pairwise(labels)} == {timedelta(seconds=2)}


@pytest.mark.parametrize("place", ["fire.after_sql", "settle.before_sql"])
def test_45_whoever_is_killed_around_a_run_or_its_settling_leaves_it_to_the_next(nights: Harness, place: str) -> None:
    """It dies when the run and its job are there and nobody plans the job; when the data set has taken the run in, but
    SQL does not say so."""
    killed = nights.start_reconciler_process("r1", NIGHTMILL_FAILPOINTS=f"{place}:kill", **OFTEN)
    nights.start_worker("w0")
    schedule = declare(nights, cron="* * * * * *")
    wait_for(lambda: killed.process.poll() == -9, "it is killed")
    before = runs_of(nights, schedule)
    assert before
    assert all(run.job_id is not None for run in before)

    nights.start_reconciler_process("r2", **OFTEN)

    wait_for_labels(nights, schedule, 2)
    let_it_end(nights, schedule)
    check_nights(nights, schedule)


def test_45_three_midnights_without_anybody_are_caught_up_as_each_schedule_says(nights: Harness) -> None:
    clock = ShiftedClock(nights.folder)
    schedules = {
        policy: declare(nights, policy, cron="0 0 * * *", catch_up=policy) for policy in ("none", "latest", "all")
    }
    noon = (12 * 3600 - time.time() % DAY) % DAY  # of today or tomorrow
    clock.shift(int(noon + 3 * DAY))

    nights.start_worker("w0", **clock.environment)
    nights.start_reconciler_process("r1", **OFTEN, **clock.environment)

    wait_for_labels(nights, schedules["all"], 3)
    wait_for_labels(nights, schedules["latest"], 1)
    nights.stop()
    states = {policy: [run.state for run in runs_of(nights, each)][-3:] for policy, each in schedules.items()}
    missed, done = RunState.MISSED, RunState.SUCCEEDED
    assert states == {"none": [missed] * 3, "latest": [missed, missed, done], "all": [done] * 3}
    check_nights(nights, schedules["all"])
    check_nights(nights, schedules["latest"])


def test_46_a_clock_that_goes_forward_and_back_an_hour_repeats_no_label(nights: Harness) -> None:
    clock = ShiftedClock(nights.folder)
    start = datetime.now(UTC)
    to_half_past = int(7200 + (1800 - start.timestamp() % 3600) % 3600)
    hourly = declare(nights, "hourly", cron="0 * * * *", catch_up="all")
    clock.shift(to_half_past)
    nights.start_reconciler_process("r1", **OFTEN, **clock.environment)

    seen = []
    for number, shift in enumerate((0, 3600, 0, 3600, 7200)):
        clock.shift(to_half_past + shift)
        _wait_for_a_tick(nights, number)
        seen.append([run.label for run in runs_of(nights, hourly)])

    first = start.replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    hours = [f"{first + timedelta(hours=later):%Y-%m-%dT%H-00}" for later in range(6)]
    until = hours.index(f"{start + timedelta(seconds=to_half_past):%Y-%m-%dT%H-00}") + 1
    assert seen == [hours[: until + later] for later in (0, 1, 1, 1, 2)]
    assert len({run.job_id for run in runs_of(nights, hourly)}) == until + 2


def _wait_for_a_tick(harness: Harness, number: int, cursor: str | None = None) -> None:
    """Until a schedule that is made now, and looked at after all others, has fired."""
    canary = declare(harness, f"z-{number}", cron="*/20 * * * *", catch_up="none", cursor=cursor)
    wait_for(lambda: bool(runs_of(harness, canary)), "a tick has looked at all schedules")
    harness.repository.remove_schedule(canary.name)


def test_46_days_on_which_clocks_jump_a_leap_day_and_a_move_have_one_run_each(nights: Harness) -> None:
    """A reconciler whose clock jumps from one such day to the next; the one of Berlin moves to New York at last."""
    clock = ShiftedClock(nights.folder)
    absent = {"input": str(nights.folder / "absent/*.parquet"), "catch_up": "none", "cursor": "2027-03-13T12:00:00"}
    berlin = declare(nights, "berlin", "30 2 * * *", zone="Europe/Berlin", **absent)
    new_york = declare(nights, "new-york", "30 2 * * *", zone="America/New_York", **absent)
    nights.start_reconciler_process("r1", **OFTEN, **clock.environment)

    for number, moment in enumerate(JUMPS):
        if moment == "2027-11-07T07:32":
            seen = nights.repository.get_schedule(berlin.name)
            nights.repository.change_schedule(seen, replace(seen.declared, zone="America/New_York"))
        clock.shift(int(datetime.fromisoformat(f"{moment}+00:00").timestamp() - time.time()))
        _wait_for_a_tick(nights, number, cursor=moment[:11] + "00:00:00")

    for schedule, days in ((berlin, BERLIN_DAYS), (new_york, NEW_YORK_DAYS)):
        runs = runs_of(nights, schedule)
        every = [f"{datetime(2027, 3, 14) + timedelta(days=day):%Y-%m-%d}" for day in range(354)]
        assert [run.label for run in runs] == every
        in_time = {run.label: f"{run.logical_time:%H:%M}" for run in runs if run.state != RunState.MISSED}
        assert in_time == days


JUMPS = [
    *("2027-03-14T07:31", "2027-03-28T01:31"),  # half past two is left out
    *("2027-10-31T00:31", "2027-10-31T01:31"),  # Berlin shows it twice
    *("2027-11-07T07:31", "2027-11-07T07:32"),  # Berlin had its run of that day, and is New York's now
    *("2028-02-29T07:31", "2028-03-01T07:31"),
]
BERLIN_DAYS = {"2027-03-28": "01:30", "2027-10-31": "00:30", "2028-02-29": "07:30", "2028-03-01": "07:30"}
NEW_YORK_DAYS = {"2027-03-14": "07:30", "2027-11-07": "07:30", "2028-02-29": "07:30", "2028-03-01": "07:30"}


def test_46_a_year_of_nights_with_its_leap_day_clock_changes_and_a_move_has_each_date_once(nights: Harness) -> None:
    """Under a clock that is made up, one look a day; in June the schedule moves from Berlin to New York."""
    now = [datetime(2028, 1, 1, 12, tzinfo=UTC).timestamp()]
    schedule = declare(nights, cron="30 2 * * *", zone="Europe/Berlin", input_wait="1h")
    nights.repository.change_schedule(schedule, schedule.declared, "2028-01-01T12:00:00")
    ticker = Ticker(
        nights.settings,
        nights.repository,
        clock=lambda: now[0],
        prepare=lambda declared, slot, settings: NotYet("nobody writes inputs here", absent=True),
    )

    for look in range(366):
        now[0] += DAY
        if look == 165:
            seen = nights.repository.get_schedule(schedule.name)
            nights.repository.change_schedule(seen, replace(seen.declared, zone="America/New_York"))
        ticker.tick()

    runs = runs_of(nights, schedule)
    days = [f"{datetime(2028, 1, 2) + timedelta(days=day):%Y-%m-%d}" for day in range(366)]
    assert [run.label for run in runs] == days
    moments = {run.label: f"{run.logical_time:%H:%M}" for run in runs}
    berlin = [moments[day] for day in ("2028-02-29", "2028-03-25", "2028-03-26", "2028-03-27")]
    assert berlin == ["01:30", "01:30", "01:30", "00:30"]  # on the 26th at half past three, since two is left out
    new_york = [moments[day] for day in ("2028-07-01", "2028-11-04", "2028-11-05", "2028-11-06")]
    assert new_york == ["06:30", "06:30", "07:30", "07:30"]
