from __future__ import annotations

import threading

import pytest

from jobs import freezing
from jobs.abandoned import AbandonedJobs
from storage.errors import InputInvalid
from storage.records import Job
from storage.states import JobState
from tests.unit.jobs.desk import Desk, killed_while_planning


def planned_by_reconciler(desk: Desk, *, told_to_stop: bool = False, **changes: float) -> Job:
    """The newest job after one look of a reconciler whose patience with young jobs is over."""
    settings = desk.settings.model_copy(update={"lease_seconds": 0.0, **changes})
    abandoned = AbandonedJobs(settings, desk.repository, "reconciler")
    if told_to_stop:
        abandoned.stop()
    abandoned.look()
    abandoned.wait()
    return desk.repository.list_jobs()[0]


def test_a_job_whose_planner_died_is_planned_as_it_was_submitted(desk: Desk) -> None:
    killed_while_planning(desk, lease_seconds=0)

    job = planned_by_reconciler(desk)

    assert (job.state, job.rows_total) == (JobState.QUEUED, 3)
    assert desk.submit().how == "resumed"


def test_a_job_that_is_being_planned_is_left_alone(desk: Desk) -> None:
    killed_while_planning(desk, lease_seconds=60)

    assert planned_by_reconciler(desk).state == JobState.VALIDATING


def test_a_job_of_an_older_version_waits_for_the_same_submit(desk: Desk) -> None:
    killed_while_planning(desk, lease_seconds=0, options={})

    assert planned_by_reconciler(desk).state == JobState.VALIDATING


def test_a_job_that_cannot_be_planned_any_more_fails_with_the_reason(desk: Desk) -> None:
    killed_while_planning(desk, lease_seconds=0)
    desk.write({"prompt": ["changed"]})

    job = planned_by_reconciler(desk)

    assert job.state == JobState.FAILED
    assert "has changed since job 2 was submitted" in str(job.error)
    assert not desk.out.exists()


def test_a_reconciler_that_stops_leaves_the_planning_to_the_next(desk: Desk) -> None:
    killed_while_planning(desk, lease_seconds=0)

    assert planned_by_reconciler(desk, told_to_stop=True).state == JobState.VALIDATING
    assert planned_by_reconciler(desk).state == JobState.QUEUED


def test_a_reconciler_that_stops_does_not_wait_long_for_a_planner_that_hears_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_while_planning(desk, lease_seconds=0)
    settings = desk.settings.model_copy(update={"lease_seconds": 0.0, "stop_seconds": 0.01})
    abandoned = AbandonedJobs(settings, desk.repository, "reconciler")
    began, go_on, real = threading.Event(), threading.Event(), freezing.make_plan

    def deaf(*arguments: object) -> object:
        began.set()
        assert go_on.wait(30)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(freezing, "make_plan", deaf)
    abandoned.look()
    assert began.wait(30)

    abandoned.stop()

    assert desk.repository.list_jobs()[0].state == JobState.VALIDATING
    go_on.set()
    abandoned.wait()


def test_a_reconciler_that_was_overtaken_changes_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lease ran out and the user's submit planned the job meanwhile."""
    killed_while_planning(desk, lease_seconds=0)
    real = freezing.make_plan

    def overtaken(*arguments: object) -> object:
        monkeypatch.setattr(freezing, "make_plan", real)
        job = desk.repository.list_jobs()[0]
        desk.repository.renew_job(job.id, 2, -1)
        assert desk.submit().how == "replanned"
        raise InputInvalid("changed", "what the slow one sees")

    monkeypatch.setattr(freezing, "make_plan", overtaken)

    assert planned_by_reconciler(desk).state == JobState.QUEUED


def test_a_job_whose_input_is_not_to_be_seen_waits_and_says_so_and_is_planned_when_it_is_back(desk: Desk) -> None:
    killed_while_planning(desk, lease_seconds=0)
    elsewhere = desk.input.rename(desk.input.with_name("unmounted"))

    waiting = planned_by_reconciler(desk)

    assert waiting.state == JobState.VALIDATING
    assert "cannot see what the job needs" in str(waiting.error)
    assert str(desk.input) in str(waiting.error)
    elsewhere.rename(desk.input)
    job = planned_by_reconciler(desk)
    assert (job.state, job.error) == (JobState.QUEUED, None)


def test_a_job_whose_input_is_not_seen_for_too_long_fails_with_the_reason(desk: Desk) -> None:
    killed_while_planning(desk, lease_seconds=0)
    desk.input.unlink()

    job = planned_by_reconciler(desk, input_wait_seconds=0)

    assert job.state == JobState.FAILED
    assert str(desk.input) in str(job.error)
