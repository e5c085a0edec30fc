"""Whoever waits for runs sees how they end, and is told when they will not."""

from __future__ import annotations

import pytest

from jobs.exits import TimedOut
from jobs.schedules import actions
from storage.errors import ScheduleConflict
from storage.records import JobId
from storage.states import RunState
from tests.unit.jobs.schedules.office import Office


def test_runs_are_followed_to_their_end(noon: Office) -> None:
    noon.add()
    run = actions.run_now(noon.repository, "nightly", None, again=False)
    steps = iter([lambda: None, noon.tick, lambda: noon.end_job("2026-11-24")])

    seen = [
        each.state
        for each in actions.follow(noon.repository, [run.id], poll_seconds=0, check=lambda: next(steps)() and None)
    ]

    assert seen == [RunState.QUEUED, RunState.RUNNING, RunState.FAILED]
    assert noon.run("2026-11-24").job_id == JobId(1)


def test_a_wait_for_what_will_not_start_ends_when_the_schedule_is_paused(noon: Office) -> None:
    noon.add()
    run = actions.run_now(noon.repository, "nightly", None, again=False)
    steps = iter([lambda: None, lambda: noon.repository.pause_schedule("nightly")])

    with pytest.raises(ScheduleConflict, match="schedule nightly is paused"):
        list(actions.follow(noon.repository, [run.id], poll_seconds=0, check=lambda: next(steps)() and None))


def test_a_wait_can_be_given_up(noon: Office) -> None:
    noon.add()
    run = actions.run_now(noon.repository, "nightly", None, again=False)

    with pytest.raises(TimedOut, match="they go on"):
        list(actions.follow(noon.repository, [run.id], poll_seconds=0, timeout=0.0))


def test_a_run_that_is_followed_ends_with_its_schedule(noon: Office) -> None:
    noon.add()
    run = actions.run_now(noon.repository, "nightly", None, again=False)
    steps = iter([lambda: None, lambda: noon.repository.remove_schedule("nightly")])

    followed = actions.follow(noon.repository, [run.id], poll_seconds=0, check=lambda: next(steps)() and None)

    assert [(each.state, each.reason) for each in followed][1:] == [(RunState.CANCELLED, "its schedule was removed")]
