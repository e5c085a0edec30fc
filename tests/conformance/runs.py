"""Laws of runs that wait for input, are settled, run again or are told of, on every database."""

from __future__ import annotations

import pytest

from storage.errors import Fenced
from storage.records import JobId, NewGeneration, NewShard
from storage.repository import Repository
from storage.schedule_records import Run, Schedule
from storage.states import RunState
from tests.conformance.samples import LEASE, OVER, claimed, finish, new_job, plan
from tests.conformance.schedules import fired, new_run, race, scheduled

# --- waiting for input ----------------------------------------------------------------------------------------------


def test_a_run_without_input_waits_and_ends_or_starts_later(repository: Repository) -> None:
    schedule = scheduled(repository, max_active=2)
    first, second = fired(
        repository,
        schedule,
        *(new_run(f"2026-11-2{day}", with_job=False, state=RunState.WAITING, wait_until=5.0) for day in (7, 8)),
    )

    assert repository.move_pending_run(first, RunState.NO_INPUT, reason="prompts/*.parquet matches no file")
    started = repository.start_run(second, new_job(), "a1")

    ended = repository.get_run(first.id)
    assert (ended.state, ended.reason) == (RunState.NO_INPUT, "prompts/*.parquet matches no file")
    assert ended.finished_at is not None
    assert started is not None
    assert not repository.move_pending_run(second, RunState.NO_INPUT)  # it has begun
    repository.check_integrity()


def test_what_has_not_begun_is_cancelled_with_its_schedule(repository: Repository) -> None:
    schedule = scheduled(repository)
    first, _ = fired(repository, schedule, new_run(), new_run("2026-11-28"))

    repository.remove_schedule(schedule.name)

    assert [(run.label, run.state) for run in repository.runs(schedule.id)] == [
        ("2026-11-28", RunState.CANCELLED),
        ("2026-11-27", RunState.RUNNING),
    ]
    assert repository.schedule_of(first).declared == schedule.declared


# --- settling -------------------------------------------------------------------------------------------------------


def ended_run(repository: Repository, schedule: Schedule, label: str = "2026-11-27") -> Run:
    """A run whose job has ended."""
    [run] = fired(repository, schedule, new_run(label, max_active=5))
    assert run.job_id is not None
    repository.fail_job(run.job_id, None, "x")
    return run


def test_a_run_whose_job_has_ended_is_settled_by_one_process(repository: Repository) -> None:
    schedule = scheduled(repository)
    run = ended_run(repository, schedule)
    assert [found.id for found in repository.unsettled_runs()] == [run.id]

    epochs = race(lambda: repository.claim_run(run, "a", LEASE), lambda: repository.claim_run(run, "b", LEASE))

    assert sorted(epochs, key=str) == [1, None]
    assert repository.unsettled_runs() == []
    repository.renew_run(run.id, 1, LEASE)
    gates = [{"name": "min_success_rate", "passed": True}]
    ended = repository.finish_run(run.id, 1, RunState.SUCCEEDED, gates=gates)
    assert (ended.state, ended.gates) == (RunState.SUCCEEDED, gates)
    assert repository.finish_run(run.id, 1, RunState.SUCCEEDED, gates=gates) == ended  # the answer was lost
    repository.check_integrity()


def test_a_settler_whose_lease_ran_out_is_fenced_by_the_next(repository: Repository) -> None:
    schedule = scheduled(repository)
    run = ended_run(repository, schedule)
    assert repository.claim_run(run, "slow", OVER) == 1

    [found] = repository.unsettled_runs()
    assert repository.claim_run(found, "next", LEASE) == 2

    with pytest.raises(Fenced, match="epoch 1 may not renew its lease"):
        repository.renew_run(run.id, 1, LEASE)
    with pytest.raises(Fenced, match="epoch 1 may not finish it"):
        repository.finish_run(run.id, 1, RunState.FAILED)
    assert repository.get_run(run.id).state == RunState.SETTLING


def test_the_runs_of_one_schedule_are_settled_in_turn(repository: Repository) -> None:
    schedule = scheduled(repository)
    first, second = ended_run(repository, schedule), ended_run(repository, schedule, "2026-11-28")
    assert repository.claim_run(first, "a", LEASE) == 1

    assert repository.claim_run(second, "b", LEASE) is None
    repository.finish_run(first.id, 1, RunState.FAILED)
    assert repository.claim_run(second, "b", LEASE) == 1


def test_a_run_that_cannot_be_settled_yet_is_released_and_holds_no_other_one_up(repository: Repository) -> None:
    schedule = scheduled(repository)
    first, second = ended_run(repository, schedule), ended_run(repository, schedule, "2026-11-28")
    assert repository.claim_run(first, "a", LEASE) == 1

    repository.release_run(first.id, 1, delay_seconds=LEASE)

    released = repository.get_run(first.id)
    assert (released.state, released.settle_tries) == (RunState.RUNNING, 1)
    assert [run.id for run in repository.unsettled_runs()] == [second.id]
    assert repository.claim_run(released, "a", LEASE) is None  # its pause
    assert repository.claim_run(second, "b", LEASE) == 1
    repository.check_integrity()
    with pytest.raises(Fenced, match="epoch 1 may not release it"):
        repository.release_run(first.id, 1)


def test_tries_to_settle_are_those_of_the_attempt_and_what_does_not_count_is_taken_back(repository: Repository) -> None:
    schedule = scheduled(repository)
    run = ended_run(repository, schedule)
    for counts, tries in ((True, 1), (False, 1), (True, 2)):
        epoch = repository.claim_run(repository.get_run(run.id), "a", LEASE)
        assert epoch is not None
        repository.release_run(run.id, epoch, counts=counts)
        assert repository.get_run(run.id).settle_tries == tries

    epoch = repository.claim_run(repository.get_run(run.id), "a", LEASE)
    assert epoch == 4
    repository.finish_run(run.id, epoch, RunState.FAILED)
    [again] = repository.queue_runs(schedule.id, [new_run(with_job=False)], {RunState.FAILED})

    assert (again.settle_tries, again.epoch) == (0, 4)  # who settled the attempt before stays fenced


def test_a_run_whose_job_is_open_cannot_be_settled(repository: Repository) -> None:
    [run] = fired(repository, scheduled(repository), new_run())

    assert repository.unsettled_runs() == []
    assert repository.claim_run(run, "a", LEASE) is None


def test_a_run_whose_rows_ran_again_is_settled_once_more(repository: Repository) -> None:
    schedule = scheduled(repository)
    [run] = fired(repository, schedule, new_run())
    assert run.job_id is not None
    assert repository.claim_job(run.job_id, "planner", LEASE) == 1
    repository.queue_job(run.job_id, 1, plan(10), [NewShard(idx=0, row_lo=0, row_hi=10, cost_tokens=1)])
    finish(repository, claimed(repository, repository.shards(run.job_id)[0]).shard, succeeded=9, errored=1)
    assert repository.claim_job(run.job_id, "publisher", LEASE) == 2
    assert repository.complete_job(run.job_id, 2, "5ade").published_generation == 1
    assert repository.claim_run(run, "a", LEASE) == 1
    repository.finish_run(run.id, 1, RunState.GATES_FAILED, generation=1)
    assert repository.unsettled_runs() == []

    again = NewShard(idx=0, row_lo=0, row_hi=1, cost_tokens=1)
    kept = {"succeeded": 9, "errored": 0, "expired": 0, "canceled": 0}
    repository.retry_job(run.job_id, NewGeneration(number=2, plan=plan(1), shards=(again,), kept=kept))
    assert repository.unsettled_runs() == []  # its rows are at work
    shard = next(shard for shard in repository.shards(run.job_id) if shard.generation == 2)
    finish(repository, claimed(repository, shard).shard, succeeded=1)
    epoch = repository.claim_job(run.job_id, "publisher", LEASE)
    assert epoch is not None
    repository.complete_job(run.job_id, epoch, "c0de")

    [found] = repository.unsettled_runs()
    assert (found.id, repository.claim_run(found, "a", LEASE)) == (run.id, 2)
    repository.check_integrity()
    ended = repository.finish_run(run.id, 2, RunState.SUCCEEDED, generation=2)
    assert (ended.state, repository.unsettled_runs()) == (RunState.SUCCEEDED, [])
    repository.check_integrity()


# --- asked for again ------------------------------------------------------------------------------------------------


def test_an_ended_run_is_queued_again_as_the_next_attempt_and_an_open_one_is_left_alone(repository: Repository) -> None:
    schedule = scheduled(repository)
    run = ended_run(repository, schedule)
    asked = [new_run(with_job=False, cause="backfill", backfill="key"), new_run("2026-11-20", with_job=False)]

    assert [run.label for run in repository.queue_runs(schedule.id, asked, {RunState.FAILED})] == ["2026-11-20"]
    assert repository.claim_run(run, "a", LEASE) == 1
    repository.finish_run(run.id, 1, RunState.FAILED, gates=[{"name": "g"}], reason="x", notice="failure")
    assert repository.queue_runs(schedule.id, asked, {RunState.MISSED}) == []
    [again] = repository.queue_runs(schedule.id, asked, {RunState.FAILED})

    assert (again.id, again.state, again.attempt, again.backfill) == (run.id, RunState.QUEUED, 2, "key")
    assert (again.job_id, again.run_id, again.gates, again.reason, again.notice) == (None,) * 5
    assert repository.start_run(run, new_job(), "old") is None  # of the attempt before
    started = repository.start_run(again, new_job(), "new")
    assert started is not None
    assert started.job_id == JobId(2)
    repository.check_integrity()


# --- notices --------------------------------------------------------------------------------------------------------


def missed_run(repository: Repository) -> Run:
    missed = new_run(with_job=False, state=RunState.MISSED, notice="missed")
    [run] = fired(repository, scheduled(repository), missed)
    return run


def test_a_notice_is_offered_until_it_was_taken_or_tried_too_often(repository: Repository) -> None:
    run = missed_run(repository)

    assert [found.id for found in repository.unsent_notices(3)] == [run.id]
    assert repository.claim_notice(run, LEASE)
    repository.note_notice(run, error="refused", delay_seconds=LEASE)
    assert repository.unsent_notices(3) == []
    repository.note_notice(run, error="refused", delay_seconds=OVER)
    [again] = repository.unsent_notices(3)
    assert repository.claim_notice(again, OVER)  # and dies
    [again] = repository.unsent_notices(3)
    assert (again.notice_tries, again.notice_error, again.noticed) == (2, "refused", False)
    assert repository.unsent_notices(2) == []

    repository.note_notice(run, error=None)
    assert repository.unsent_notices(9) == []
    assert repository.get_run(run.id).noticed


def test_a_notice_is_tried_by_one_process_at_a_time_and_never_again_once_it_was_taken(repository: Repository) -> None:
    run = missed_run(repository)

    claimed = race(lambda: repository.claim_notice(run, LEASE), lambda: repository.claim_notice(run, LEASE))
    assert sorted(claimed) == [False, True]
    assert repository.unsent_notices(9) == []  # somebody is at it
    repository.note_notice(run, error=None)

    repository.note_notice(run, error="refused", delay_seconds=OVER)  # a slower one
    assert repository.unsent_notices(9) == []
    assert not repository.claim_notice(repository.get_run(run.id), LEASE)
    assert repository.get_run(run.id).noticed


def test_the_notice_of_an_attempt_is_not_that_of_the_next(repository: Repository) -> None:
    schedule = scheduled(repository)
    run = ended_run(repository, schedule)
    assert repository.claim_run(run, "a", LEASE) == 1
    first = repository.finish_run(run.id, 1, RunState.FAILED, notice="failure")
    assert repository.claim_notice(first, LEASE)
    repository.queue_runs(schedule.id, [new_run(with_job=False)], {RunState.FAILED})

    repository.note_notice(first, error=None)  # it was at it meanwhile

    again = repository.get_run(run.id)
    assert (again.notice, again.notice_tries, again.noticed) == (None, 0, False)
