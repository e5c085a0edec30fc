from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.schedules.cron import Cron
from jobs.schedules.policy import Decision, decide
from storage.states import RunState
from tests.conformance.schedules import new_schedule

NIGHTS = Cron.parse("0 0 * * *", "UTC").between(date(2026, 11, 24), date(2026, 11, 27))
MORNING = datetime(2026, 11, 27, 8, tzinfo=UTC)  # the night of the 27th is late by now, too
MIDNIGHT = datetime(2026, 11, 27, 0, 1, tzinfo=UTC)
GRACE = timedelta(minutes=5)
RUN, QUEUE, SKIP, MISS = RunState.RUNNING, RunState.QUEUED, RunState.SKIPPED, RunState.MISSED


def states(*, nights: int = 4, active: int = 0, now: datetime = MORNING, **policies: Any) -> list[RunState]:
    """What becomes of the last nights, the newest of which is the 27th."""
    decided = decide(NIGHTS[-nights:], new_schedule(**policies), active=active, now=now, grace=GRACE)
    return [decision.state for decision in decided]


@pytest.mark.parametrize(
    ("policies", "wanted"),
    [
        ({"catch_up": "none"}, [MISS, MISS, MISS, MISS]),
        ({"catch_up": "latest"}, [MISS, MISS, MISS, RUN]),
        ({"catch_up": "all", "catch_up_limit": 3}, [MISS, RUN, QUEUE, QUEUE]),
        ({"catch_up": "all", "catch_up_limit": 9, "max_active": 2}, [RUN, RUN, QUEUE, QUEUE]),
        ({"catch_up": "all", "catch_up_limit": 2, "overlap": "skip"}, [MISS, MISS, RUN, QUEUE]),
    ],
)
def test_nights_without_a_tick_are_caught_up_as_the_schedule_says(
    policies: dict[str, Any], wanted: list[RunState]
) -> None:
    assert states(**policies) == wanted


@pytest.mark.parametrize("catch_up", ["none", "latest", "all"])
def test_a_slot_that_is_looked_at_in_time_runs_whatever_the_catch_up(catch_up: str) -> None:
    assert states(nights=1, now=MIDNIGHT, catch_up=catch_up) == [RUN]


@pytest.mark.parametrize(("overlap", "wanted"), [("skip", SKIP), ("queue", QUEUE), ("cancel_previous", QUEUE)])
def test_a_slot_that_meets_a_run_at_work_follows_the_overlap(overlap: str, wanted: RunState) -> None:
    assert states(nights=1, now=MIDNIGHT, active=1, overlap=overlap) == [wanted]
    assert states(nights=1, now=MIDNIGHT, active=1, max_active=2, overlap=overlap) == [RUN]


def test_of_several_slots_only_the_newest_is_begun_when_it_would_cancel_the_others() -> None:
    every_minute = Cron.parse("* * * * *", "UTC").due("2026-11-27T00:00:00", MIDNIGHT + timedelta(minutes=2), 9)

    decided = decide(
        every_minute,
        new_schedule(overlap="cancel_previous"),
        active=0,
        now=MIDNIGHT + timedelta(minutes=2),
        grace=GRACE,
    )

    assert [decision.state for decision in decided] == [SKIP, SKIP, RUN]
    assert decided[0].reason == "a newer slot came due before this one was looked at"


@given(
    nights=st.integers(1, 4),
    active=st.integers(0, 5),
    max_active=st.integers(1, 3),
    catch_up=st.sampled_from(["none", "latest", "all"]),
    limit=st.integers(1, 5),
    overlap=st.sampled_from(["skip", "queue", "cancel_previous"]),
    hours=st.floats(0.1, 50),
)
def test_every_slot_gets_one_decision_and_no_more_start_than_there_are_places(
    nights: int, active: int, max_active: int, catch_up: str, limit: int, overlap: str, hours: float
) -> None:
    due = NIGHTS[-nights:]
    now = due[-1].instant + timedelta(hours=hours)
    declared = new_schedule(max_active=max_active, catch_up=catch_up, catch_up_limit=limit, overlap=overlap)

    decided = decide(due, declared, active=active, now=now, grace=GRACE)

    assert [decision.slot for decision in decided] == list(due)
    begun = [decision for decision in decided if decision.state == RUN]
    assert len(begun) <= max(0, max_active - active)
    assert all(decision.reason for decision in decided if decision.state in (MISS, SKIP))
    assert decided[-1].state != MISS or catch_up == "none"


def test_a_decision_says_why_a_slot_was_missed() -> None:
    [decision] = decide(NIGHTS[-1:], new_schedule(catch_up="none"), active=0, now=MORNING, grace=GRACE)

    assert decision == Decision(NIGHTS[-1], MISS, "nobody ticked from 2026-11-27 00:00:00 on for 0:05:00")
