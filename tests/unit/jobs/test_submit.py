from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.options import SubmitOptions
from jobs.settings import Settings
from jobs.submit import Submitted, submit
from jobs.withdrawal import give_back, withdraw
from storage import layout, migrate
from storage.errors import Fenced, InputInvalid, JobConflict, OutputConflict
from storage.parquet.plan import verify_plan
from storage.records import NewJob, WorkerRecord
from storage.repository import Repository
from storage.states import JobState
from tests.unit.jobs.tiny_model import make_model

GOOD = {"prompt": ["a", "b", "c"]}


class Desk:
    """Where a test submits: a model, a database, an input file and an output directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        url = f"sqlite:///{folder}/db.sqlite"
        migrate.upgrade(url)
        self.repository = Repository(url)
        self.settings = Settings(home=folder, lease_seconds=60, heartbeat_seconds=0)
        self.input, self.out = folder / "in.parquet", folder / "out"
        self.options = SubmitOptions(
            inputs=(str(self.input),), output=self.out, model=str(make_model(folder / "model"))
        )
        self.write(GOOD)

    def write(self, columns: dict[str, Any]) -> None:
        pq.write_table(pa.table(columns), self.input)

    def submit(self, progress: Callable[[str, int, int], None] | None = None, **changes: Any) -> Submitted:
        watched = progress or (lambda stage, done, total: None)
        return submit(replace(self.options, **changes), self.repository, self.settings, watched)

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.out)) for path in self.out.rglob("*") if path.is_file())


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


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

    assert (again.how, again.job.id, again.job.state) == ("attached", job.id, JobState.CANCELLED)


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


def test_an_interrupt_while_planning_gives_the_output_back(desk: Desk) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.submit(interrupt)

    assert not desk.out.exists()
    assert desk.submit().how == "new"


def killed_while_planning(desk: Desk, lease_seconds: float) -> None:
    """Leave what a planner leaves that was killed: a validating job with a lease, and the start of a plan."""
    done = desk.submit()
    desk.repository.fail_job(done.job.id, None, "x")
    desk.repository.retire_job(done.job.id)
    fields = {name: getattr(done.job, name) for name in ("run_key", "name", "model", "input_uri", "input_fingerprint")}
    job = desk.repository.create_job(
        NewJob(**fields, output_uri=done.job.output_uri, spec=done.job.spec, spec_hash=done.job.spec_hash)
    )
    assert desk.repository.claim_job(job.id, "dead", lease_seconds) == 1
    (desk.out / layout.PLAN).with_name("plan.e1.parquet").write_bytes(b"half")


@pytest.mark.parametrize("lease_seconds", [0, 1])
def test_a_planning_that_was_killed_is_done_again_once_its_lease_is_over(desk: Desk, lease_seconds: float) -> None:
    killed_while_planning(desk, lease_seconds)

    again = desk.submit()

    assert (again.how, again.job.state) == ("resumed", JobState.QUEUED)
    assert desk.files() == [layout.PLAN, layout.OWNER]


def test_a_planner_that_lost_its_job_leaves_the_output_to_the_next(desk: Desk) -> None:
    """The lease runs out in the middle, and another process plans the job to its end."""
    winners: list[Submitted] = []

    def lose(stage: str, done: int, total: int) -> None:
        if not winners:
            job = desk.repository.list_jobs()[0]
            desk.repository.renew_job(job.id, 1, -1)
            winners.append(desk.submit())

    with pytest.raises(Fenced):
        desk.submit(lose)

    job = desk.repository.get_job(winners[0].job.id)
    assert job.state == JobState.QUEUED
    assert job.plan is not None
    verify_plan(desk.out / job.plan.path, job.plan.sha256)


def test_a_job_cancelled_while_planning_gives_the_output_back(desk: Desk) -> None:
    def cancel(stage: str, done: int, total: int) -> None:
        desk.repository.request_cancel(desk.repository.list_jobs()[0].id)

    with pytest.raises(Fenced, match="cancelled"):
        desk.submit(cancel)

    assert not desk.out.exists()


def test_a_job_that_failed_before_its_first_row_gives_way_to_the_same_command(desk: Desk) -> None:
    first = desk.submit()
    desk.repository.fail_job(first.job.id, None, "the model cannot be served")

    again = desk.submit()

    assert (again.how, again.job.state) == ("new", JobState.QUEUED)
    assert again.job.id != first.job.id
    assert desk.files() == [layout.PLAN, layout.OWNER]


def test_a_withdrawn_job_leaves_nothing_but_its_line_in_the_history(desk: Desk) -> None:
    job = desk.submit().job

    withdraw(desk.repository, job, None, "the model cannot be served")

    assert not desk.out.exists()
    assert desk.repository.get_job(job.id).error == "the model cannot be served"
    assert desk.repository.find_job(output_uri=str(desk.out)) is None


def test_a_withdrawal_that_was_cut_short_is_completed_by_whoever_waited_and_only_once(desk: Desk) -> None:
    job = desk.submit().job
    desk.repository.fail_job(job.id, None, "the model cannot be served")

    give_back(desk.repository, job)

    assert not desk.out.exists()
    again = desk.submit()
    give_back(desk.repository, job)  # late: the directory is another job's by now
    assert again.how == "new"
    assert desk.files() == [layout.PLAN, layout.OWNER]
