from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.datasets.gates import GateResult
from jobs.datasets.settle import Settled
from jobs.datasets.terms import DatasetTerms
from jobs.schedules.settling import Settler
from storage.records import Job, NewShard
from storage.schedule_records import NewRun, RunRowId
from storage.states import JobState, RunState
from tests.conformance.samples import claimed, finish, plan
from tests.unit.jobs.schedules.office import Office

DAY, NEXT = "2026-11-25", "2026-11-26"
WEBHOOK = {"webhook_url": "https://hooks.example/x", "webhook_secret_env": "SECRET"}
PASSED = GateResult(name="min_success_rate", passed=True, observed=1.0, wanted=">= 0.9")
FAILED = GateResult(name="min_success_rate", passed=False, observed=0.5, wanted=">= 0.9", why="too few")
TAKEN_IN = Settled(published=True, gates=(PASSED,), reason="all gates passed")


@dataclass
class Fakes:
    """A data set that answers what it is told to."""

    answers: list[Settled | Exception] = field(default_factory=lambda: [TAKEN_IN])
    calls: list[tuple[str, str, Path]] = field(default_factory=list)
    meanwhile: Callable[[], None] = lambda: None

    def settle(self, job: Job, label: str, run_id: str, dataset: Path, terms: DatasetTerms) -> Settled:
        self.calls.append((label, run_id, dataset))
        self.meanwhile()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


def settler(office: Office, fakes: Fakes) -> Settler:
    return Settler(office.settings, office.repository, "settler", settle=fakes.settle)


def complete(office: Office, label: str = DAY, name: str = "nightly") -> None:
    """The job of a run is planned, runs and completes."""
    job = office.job_of(label, name)
    assert office.repository.claim_job(job.id, "planner", 60.0) == 1
    office.repository.queue_job(job.id, 1, plan(10), [NewShard(idx=0, row_lo=0, row_hi=10, cost_tokens=1)])
    [shard] = office.repository.shards(job.id)
    finish(office.repository, claimed(office.repository, shard).shard)
    epoch = office.repository.claim_job(job.id, "publisher", 60.0)
    assert epoch is not None
    assert office.repository.complete_job(job.id, epoch, "5ade").state == JobState.COMPLETED


def started(office: Office, **changes: Any) -> None:
    office.write("in/a.parquet", "one")
    office.add(**changes)
    office.tick(f"{DAY}T00:00:10")


def test_a_run_whose_job_has_completed_and_whose_gates_pass_has_succeeded(office: Office, fakes: Fakes) -> None:
    started(office)
    assert settler(office, fakes).work() == 0  # its job is open
    complete(office)

    assert settler(office, fakes).work() == 1

    run = office.run(DAY)
    assert (run.state, run.reason, run.gates) == (RunState.SUCCEEDED, "all gates passed", [PASSED.as_dict()])
    assert fakes.calls == [(DAY, run.run_id, office.folder / "data-nightly")]
    assert settler(office, fakes).work() == 0
    assert run.notice is None  # nobody is to be told


@pytest.mark.parametrize(
    ("settled", "state"),
    [
        (Settled(published=False, gates=(FAILED,), reason="min_success_rate: too few"), RunState.GATES_FAILED),
        (Settled(published=False, gates=(), reason="part-00000.parquet is damaged"), RunState.FAILED),
    ],
)
def test_a_run_that_its_data_set_refuses_says_why(
    office: Office, fakes: Fakes, settled: Settled, state: RunState
) -> None:
    started(office)
    complete(office)
    fakes.answers = [settled]

    settler(office, fakes).work()

    assert (office.run(DAY).state, office.run(DAY).reason) == (state, settled.reason)


@pytest.mark.parametrize("cancelled", [True, False], ids=["cancelled", "failed"])
def test_a_run_whose_job_has_not_completed_is_settled_and_has_not_succeeded(
    office: Office, fakes: Fakes, cancelled: bool
) -> None:
    started(office)
    job = office.job_of(DAY)
    if cancelled:
        office.repository.request_cancel(job.id)
    else:
        office.repository.fail_job(job.id, None, "no disk")
    fakes.answers = [Settled(published=False, gates=(), reason="its job has not completed")]

    settler(office, fakes).work()

    assert office.run(DAY).state == (RunState.CANCELLED if cancelled else RunState.FAILED)


def test_trouble_of_the_machine_is_tried_again_and_fails_the_run_at_last(office: Office, fakes: Fakes) -> None:
    started(office, terms=WEBHOOK)
    complete(office)
    office.settings = office.settings.model_copy(update={"lease_seconds": -1.0, "max_shard_attempts": 3})
    fakes.answers = [OSError("no space left")] * 3

    ended = [settler(office, fakes).work() for _ in range(3)]

    assert ended == [0, 0, 1]
    run = office.run(DAY)
    assert (run.state, run.reason) == (RunState.FAILED, "its data set could not take it in: no space left")
    assert run.notice == "failure"


def test_trouble_of_one_run_holds_no_other_one_up(office: Office, fakes: Fakes) -> None:
    started(office, max_active=2)
    office.tick(f"{NEXT}T00:00:10")
    complete(office)
    complete(office, NEXT)
    fakes.answers = [OSError("no space left"), TAKEN_IN]

    assert settler(office, fakes).work() == 1  # by the way, and not when a lease has run out

    assert office.states() == {DAY: RunState.RUNNING, NEXT: RunState.SUCCEEDED}


def test_a_mistake_in_how_one_run_ends_holds_no_other_one_up(office: Office, fakes: Fakes) -> None:
    started(office, max_active=2)
    office.tick(f"{NEXT}T00:00:10")
    complete(office)
    complete(office, NEXT)
    real = office.repository.finish_run

    def finish_run(run: RunRowId, *arguments: Any, **options: Any) -> Any:
        if run == office.run(DAY).id:
            raise KeyError("oops")
        return real(run, *arguments, **options)

    office.repository.finish_run = finish_run  # type: ignore[method-assign]
    fakes.answers = [TAKEN_IN, TAKEN_IN]

    assert settler(office, fakes).work() == 1

    assert office.states() == {DAY: RunState.RUNNING, NEXT: RunState.SUCCEEDED}


def test_each_attempt_has_its_tries_for_itself(office: Office, fakes: Fakes) -> None:
    office.settings = office.settings.model_copy(update={"lease_seconds": -1.0, "max_shard_attempts": 2})
    started(office)
    complete(office)
    fakes.answers = [OSError("no space left")] * 3
    assert [settler(office, fakes).work() for _ in range(2)] == [0, 1]
    asked = NewRun(label=DAY, slot=f"{DAY}T00:00:00", logical_time=0.0, state=RunState.QUEUED)
    office.repository.queue_runs(office.run(DAY).schedule_id, [asked], {RunState.FAILED})
    office.tick()
    complete(office)

    assert settler(office, fakes).work() == 0

    assert (office.run(DAY).attempt, office.run(DAY).state) == (2, RunState.RUNNING)


def test_a_full_disk_is_waited_for_however_long_it_takes(office: Office, fakes: Fakes) -> None:
    started(office)
    complete(office)
    office.settings = office.settings.model_copy(update={"full_disk_seconds": -1.0, "max_shard_attempts": 2})
    fakes.answers = [*(OSError(errno.ENOSPC, "no space left") for _ in range(5)), TAKEN_IN]

    ended = [settler(office, fakes).work() for _ in range(6)]

    assert ended == [0, 0, 0, 0, 0, 1]
    assert office.run(DAY).state == RunState.SUCCEEDED


def test_a_run_whose_settling_kills_whoever_is_at_it_fails_at_last(office: Office, fakes: Fakes) -> None:
    started(office)
    complete(office)
    for epoch in (1, 2, 3):
        assert office.repository.claim_run(office.run(DAY), "dies", -1.0) == epoch
    office.settings = office.settings.model_copy(update={"max_shard_attempts": 3})

    assert settler(office, fakes).work() == 1

    assert fakes.calls == []
    assert office.run(DAY).reason == "whoever settled it was gone before the end, 3 times"


def test_a_run_whose_rows_run_again_is_let_go_so_that_a_newer_one_is_settled(office: Office, fakes: Fakes) -> None:
    started(office, max_active=2)
    office.tick(f"{NEXT}T00:00:10")
    complete(office)
    complete(office, NEXT)
    job = office.job_of(DAY)
    real = office.repository.get_job
    open_again = replace(job, state=JobState.QUEUED)
    office.repository.get_job = lambda id: open_again if id == job.id else real(id)  # type: ignore[method-assign]

    assert settler(office, fakes).work() == 1

    assert office.states() == {DAY: RunState.RUNNING, NEXT: RunState.SUCCEEDED}
    assert office.run(DAY).settle_tries == 0


def test_terms_that_cannot_be_honoured_any_more_end_that_run_alone(office: Office, fakes: Fakes) -> None:
    office.add("other")
    started(office, terms=WEBHOOK)
    for name in ("nightly", "other"):
        complete(office, name=name)
    seen = office.repository.get_schedule("nightly")
    worse = replace(seen.declared, terms={**seen.declared.terms, "min_success_rate": 2})
    office.repository.change_schedule(seen, worse)

    assert settler(office, fakes).work() == 2

    assert (office.states(), office.states("other")) == ({DAY: RunState.FAILED}, {DAY: RunState.SUCCEEDED})
    assert (office.run(DAY).notice, "min_success_rate is 2" in str(office.run(DAY).reason)) == ("failure", True)


def test_a_mistake_in_one_run_ends_that_run_alone(office: Office, fakes: Fakes) -> None:
    started(office, max_active=2)
    office.tick(f"{NEXT}T00:00:10")
    complete(office)
    complete(office, NEXT)
    fakes.answers = [KeyError("oops"), TAKEN_IN]

    assert settler(office, fakes).work() == 2

    assert office.states() == {DAY: RunState.FAILED, NEXT: RunState.SUCCEEDED}
    assert office.run(DAY).reason == "it could not be settled: KeyError('oops')"


def test_a_settler_that_was_overtaken_changes_nothing(office: Office, fakes: Fakes) -> None:
    started(office)
    complete(office)
    slow = office.settings.model_copy(update={"lease_seconds": -1.0})
    other = Fakes()
    fakes.meanwhile = lambda: settler(office, other).work()  # type: ignore[assignment,return-value]
    fakes.answers = [Settled(published=False, gates=(FAILED,), reason="what the slow one sees")]

    ended = Settler(slow, office.repository, "slow", settle=fakes.settle).work()

    assert ended == 0
    assert office.run(DAY).state == RunState.SUCCEEDED


def test_the_right_to_settle_is_kept_while_gates_take_their_time(office: Office, fakes: Fakes) -> None:
    started(office)
    complete(office)
    office.settings = office.settings.model_copy(update={"lease_seconds": 5.0, "heartbeat_seconds": 0.01})
    renewed = threading.Semaphore(0)
    real = office.repository.renew_run

    def renew(run: RunRowId, epoch: int, lease_seconds: float) -> None:
        real(run, epoch, lease_seconds)
        renewed.release()

    office.repository.renew_run = renew  # type: ignore[method-assign]

    def wait() -> None:
        for _ in range(2):
            assert renewed.acquire(timeout=30.0)

    fakes.meanwhile = wait

    assert settler(office, fakes).work() == 1
