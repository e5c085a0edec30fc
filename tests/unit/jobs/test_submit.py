from __future__ import annotations

import shutil
from typing import Any

import pytest

from jobs.submit import Submitted
from jobs.withdrawal import give_back, withdraw, withdraw_unserved
from storage import layout
from storage.errors import InputInvalid, JobConflict, OutputConflict
from storage.parquet.plan import verify_plan
from storage.records import WorkerRecord
from storage.states import JobState
from tests.unit.jobs.desk import GOOD, Desk, killed_while_planning


def test_a_new_job_is_queued_with_a_frozen_plan(desk: Desk) -> None:
    submitted = desk.submit(name="night", tags={"team": "a"})

    job = submitted.job
    assert (submitted.how, job.state, job.rows_total, job.name, job.tags) == (
        "new",
        "queued",
        3,
        "night",
        {"team": "a"},
    )
    assert job.plan is not None
    verify_plan(desk.out / job.plan.path, job.plan.sha256)
    assert desk.files() == [layout.PLAN, layout.OWNER]


def test_the_same_command_resumes_what_nobody_works_on(desk: Desk) -> None:
    first = desk.submit()

    again = desk.submit(shard_tokens=1, order="input", name="other")

    assert (again.how, again.job.id, again.plan) == ("resumed", first.job.id, None)


def test_the_same_command_attaches_to_what_a_live_worker_serves(desk: Desk) -> None:
    key = desk.submit().job.model.key
    desk.repository.register_worker(
        WorkerRecord(id="w", boot_id="b", model_key=key, model_source="m", device="cpu", state="ready", heartbeat_age=0)
    )

    assert desk.submit().how == "attached"


def test_the_same_command_attaches_to_what_has_ended(desk: Desk) -> None:
    job = desk.submit().job
    desk.repository.request_cancel(job.id)
    desk.repository.advance_jobs()
    epoch = desk.repository.claim_job(job.id, "test", 60)
    assert epoch is not None
    desk.repository.complete_job(job.id, epoch, "sha")

    again = desk.submit()

    assert (again.how, again.job.id, again.job.state) == ("ended", job.id, JobState.CANCELLED)


def test_results_that_were_removed_are_made_anew(desk: Desk) -> None:
    old = desk.submit().job
    desk.repository.fail_job(old.id, None, "broken")
    shutil.rmtree(desk.out)

    new = desk.submit()

    assert (new.how, new.job.state) == ("new", JobState.QUEUED)
    assert new.job.id != old.id


def test_removing_the_output_of_an_open_job_is_told_with_the_way_out(desk: Desk) -> None:
    desk.submit()
    shutil.rmtree(desk.out)

    with pytest.raises(JobConflict, match="nightmill cancel 1"):
        desk.submit()


def test_a_job_cancelled_before_its_plan_makes_room_for_the_next(desk: Desk) -> None:
    killed_while_planning(desk, lease_seconds=60)
    desk.repository.request_cancel(desk.repository.list_jobs()[0].id)

    assert desk.submit().how == "new"


def test_other_options_are_refused_and_named(desk: Desk) -> None:
    desk.submit()

    with pytest.raises(JobConflict, match=r"job 1.*\(limit: None -> 2\)"):
        desk.submit(limit=2)


def test_a_changed_input_is_refused(desk: Desk) -> None:
    desk.submit()
    desk.write({"prompt": ["a", "b", "d"]})

    with pytest.raises(InputInvalid, match="changed since job 1") as caught:
        desk.submit()

    assert caught.value.code == "changed"


def test_resume_may_be_demanded_or_forbidden(desk: Desk) -> None:
    with pytest.raises(JobConflict, match="nothing to resume"):
        desk.submit(resume="always")
    assert not desk.out.exists()

    first = desk.submit(resume="never")
    assert desk.submit(resume="always").job.id == first.job.id

    with pytest.raises(JobConflict, match="job 1"):
        desk.submit(resume="never")


@pytest.mark.parametrize(
    "columns",
    [{"question": ["a"]}, {"prompt": [1]}, {"prompt": ["a"] * 2, "custom_id": ["x", "x"]}],
    ids=["missing-column", "wrong-type", "duplicate-id"],
)
def test_a_refused_input_leaves_no_output_and_its_correction_is_accepted(desk: Desk, columns: dict[str, Any]) -> None:
    desk.write(columns)
    with pytest.raises(InputInvalid):
        desk.submit()
    assert not desk.out.exists()

    desk.write(GOOD)

    assert desk.submit().how == "new"


def test_foreign_files_in_the_output_are_refused_and_kept(desk: Desk) -> None:
    desk.out.mkdir()
    (desk.out / "thesis.txt").write_text("mine")

    with pytest.raises(OutputConflict, match=r"thesis\.txt"):
        desk.submit()

    assert desk.files() == ["thesis.txt"]
    assert desk.repository.list_jobs() == []


def test_results_of_a_job_that_the_database_has_forgotten_are_kept(desk: Desk) -> None:
    desk.submit()
    (desk.out / layout.MANIFEST).write_text("{}")
    before = desk.files()
    desk.repository.fail_job(desk.repository.list_jobs()[0].id, None, "x")
    desk.repository.retire_job(desk.repository.list_jobs()[0].id)

    with pytest.raises(OutputConflict, match="does not know"):
        desk.submit()

    assert desk.files() == before


def test_a_job_that_failed_before_its_first_row_gives_way_to_the_same_command(desk: Desk) -> None:
    first = desk.submit()
    desk.repository.fail_job(first.job.id, None, "the model cannot be served")

    again = desk.submit()

    assert (again.how, again.job.state) == ("new", JobState.QUEUED)
    assert again.job.id != first.job.id
    assert desk.files() == [layout.PLAN, layout.OWNER]


@pytest.mark.parametrize("move", ["retire_job", "create_job"])
def test_two_submits_at_once_after_a_job_that_failed_are_one_job(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, move: str
) -> None:
    """The second one is done from beginning to end while the first is about to move."""
    desk.repository.fail_job(desk.submit().job.id, None, "the model cannot be served")
    real, faster = getattr(desk.repository, move), list[Submitted]()

    def overtaken(*arguments: object) -> object:
        monkeypatch.setattr(desk.repository, move, real)
        faster.append(desk.submit())
        return real(*arguments)

    monkeypatch.setattr(desk.repository, move, overtaken)

    late = desk.submit()

    assert (faster[0].how, late.how, late.job.id) == ("new", "resumed", faster[0].job.id)
    assert late.job.plan is not None
    verify_plan(desk.out / late.job.plan.path, late.job.plan.sha256)
    assert desk.files() == [layout.PLAN, layout.OWNER]


def test_a_withdrawn_job_leaves_nothing_but_its_line_in_the_history(desk: Desk) -> None:
    job = desk.submit().job

    withdraw(desk.repository, job, None, "the model cannot be served")

    assert not desk.out.exists()
    assert desk.repository.get_job(job.id).error == "the model cannot be served"
    assert desk.repository.find_job(output_uri=str(desk.out)) is None


@pytest.mark.parametrize("state", ["starting", "ready", "draining"])
def test_jobs_of_a_model_that_one_machine_cannot_serve_go_on_while_another_may(desk: Desk, state: str) -> None:
    job = desk.submit().job
    desk.repository.register_worker(
        WorkerRecord(
            id="w",
            boot_id="b",
            model_key=job.model.key,
            model_source="m",
            device="cpu",
            state=state,
            heartbeat_age=0,
        )
    )

    assert withdraw_unserved(desk.repository, job.model.key, "no such model here", 30) is None
    assert desk.repository.get_job(job.id).state == JobState.QUEUED
    desk.repository.beat_worker("w", "b", "gone")

    assert withdraw_unserved(desk.repository, job.model.key, "no such model here", 30) == 1
    assert desk.repository.get_job(job.id).error == "no such model here"


def test_a_withdrawal_that_was_cut_short_is_completed_by_whoever_waited_and_only_once(desk: Desk) -> None:
    job = desk.submit().job
    desk.repository.fail_job(job.id, None, "the model cannot be served")

    give_back(desk.repository, job)

    assert not desk.out.exists()
    again = desk.submit()
    give_back(desk.repository, job)  # late: the directory is another job's by now
    assert again.how == "new"
    assert desk.files() == [layout.PLAN, layout.OWNER]
