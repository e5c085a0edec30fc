from __future__ import annotations

import pytest

from jobs.freezing import PlanningLeft, freeze_plan
from jobs.planning import silent
from jobs.submission import Submission, submission_of
from jobs.submit import Submitted
from storage import layout
from storage.errors import DatabaseDown, Fenced, InputInvalid
from storage.parquet.plan import read_shard, verify_plan
from storage.states import JobState
from tests.unit.jobs.desk import Desk, killed_while_planning


def test_an_interrupt_while_planning_gives_the_output_back(desk: Desk) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.submit(interrupt)

    assert not desk.out.exists()
    assert desk.submit().how == "new"


@pytest.mark.parametrize("lease_seconds", [0, 1])
def test_a_planning_that_was_killed_is_done_again_once_its_lease_is_over(desk: Desk, lease_seconds: float) -> None:
    killed_while_planning(desk, lease_seconds)

    again = desk.submit()

    assert (again.how, again.job.state) == ("replanned", JobState.QUEUED)
    assert again.job.plan is not None
    assert desk.files() == [again.job.plan.path, layout.OWNER]


def test_a_planning_that_was_killed_is_done_again_as_it_was_asked_the_first_time(desk: Desk) -> None:
    desk.write({"prompt": [f"{400 - row}" for row in range(300)]})
    killed_while_planning(desk, 0)

    again = desk.submit(order="prefix", shard_rows=1000)

    assert again.plan is not None
    first = again.plan.shards[0]
    assert first.row_hi < 300
    assert read_shard(desk.out / again.plan.record.path, 0)["row_index"].to_pylist() == list(range(first.row_hi))


def test_a_job_of_an_older_version_is_planned_with_the_options_of_the_same_submit(desk: Desk) -> None:
    killed_while_planning(desk, 0, options={})

    assert desk.submit().how == "replanned"


def test_whoever_must_leave_gives_the_planning_to_the_next(desk: Desk) -> None:
    def leave(stage: str, done: int, total: int) -> None:
        raise PlanningLeft("the process ends")

    with pytest.raises(PlanningLeft):
        desk.submit(leave)

    job = desk.repository.list_jobs()[0]
    assert job.state == JobState.VALIDATING
    assert desk.submit().how == "replanned"
    assert desk.repository.get_job(job.id).state == JobState.QUEUED


@pytest.mark.parametrize("move", ["renew_job", "queue_job"])
def test_an_outage_of_sql_while_a_job_is_planned_fails_no_job(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, move: str
) -> None:
    answers, real = [DatabaseDown("no answer")], getattr(desk.repository, move)

    def at_last(*arguments: object) -> object:
        if answers:
            raise answers.pop()
        return real(*arguments)

    monkeypatch.setattr(desk.repository, move, at_last)

    if move == "queue_job":
        with pytest.raises(DatabaseDown):
            desk.submit()
        assert desk.repository.list_jobs()[0].state == JobState.VALIDATING

    assert desk.submit().how == ("new" if move == "renew_job" else "replanned")
    assert [job.state for job in desk.repository.list_jobs()] == [JobState.QUEUED]


def test_a_planner_that_lost_its_job_leaves_the_output_to_the_next(desk: Desk) -> None:
    """The lease runs out in the middle, and another process plans the job to its end."""
    winners: list[Submitted] = []

    def lose(stage: str, done: int, total: int) -> None:
        if not winners:
            job = desk.repository.list_jobs()[0]
            desk.repository.renew_job(job.id, 1, -1)
            winners.append(desk.submit())

    late = desk.submit(lose)

    assert (late.how, late.plan, late.job.id) == ("resumed", None, winners[0].job.id)
    job = desk.repository.get_job(winners[0].job.id)
    assert job.state == JobState.QUEUED
    assert job.plan is not None
    verify_plan(desk.out / job.plan.path, job.plan.sha256)


@pytest.mark.parametrize("fails", [False, True])
def test_a_planner_that_slept_until_the_job_ran_touches_nothing_of_it(desk: Desk, fails: bool) -> None:
    """It had the right to plan and had not begun; also when it cannot plan at all any more."""
    killed_while_planning(desk, 0)
    job = desk.repository.list_jobs()[0]
    assert desk.repository.claim_job(job.id, "sleeper", 0) == 2
    segment = desk.out / layout.segment(0, 1, 0)

    def asleep() -> Submission:
        assert desk.submit().how == "replanned"
        segment.parent.mkdir()
        segment.write_bytes(b"rows")
        if fails:
            raise InputInvalid("missing_file", "what the sleeper sees")
        return submission_of(job, desk.settings)

    with pytest.raises(Fenced):
        freeze_plan(job, 2, asleep, desk.repository, desk.settings, silent)

    now = desk.repository.get_job(job.id)
    assert now.state == JobState.QUEUED
    assert now.plan is not None
    verify_plan(desk.out / now.plan.path, now.plan.sha256)
    assert segment.read_bytes() == b"rows"


def test_a_job_cancelled_while_planning_gives_the_output_back(desk: Desk) -> None:
    def cancel(stage: str, done: int, total: int) -> None:
        desk.repository.request_cancel(desk.repository.list_jobs()[0].id)

    with pytest.raises(Fenced, match="cancelled"):
        desk.submit(cancel)

    assert not desk.out.exists()
