"""Laws of jobs that hold on every database. Collected through the modules that bring a `repository` fixture."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from storage.errors import Fenced, JobConflict, NoSuchJob
from storage.records import JobId, NewShard
from storage.repository import Repository
from storage.states import JobState, ShardState
from tests.conformance.samples import (
    LEASE,
    OVER,
    claimed,
    commit,
    finish,
    new_job,
    plan,
    queued_job,
    running_shard,
    seal_all,
    shard_now,
)


def test_a_new_job_is_read_back_as_it_was_given(repository: Repository) -> None:
    new = new_job(tags={"team": "eval"}, max_shard_attempts=3)

    job = repository.create_job(new)

    assert job == repository.get_job(job.id) == repository.find_job(run_key=new.run_key)
    assert (job.state, job.model, job.spec, job.tags) == (JobState.VALIDATING, new.model, new.spec, new.tags)
    assert (job.max_shard_attempts, job.plan, job.started_at) == (3, None, None)
    assert abs(job.created_at - datetime.now(UTC)) < timedelta(seconds=5)


def test_an_unknown_job_is_named(repository: Repository) -> None:
    with pytest.raises(NoSuchJob, match="no job 4711"):
        repository.get_job(JobId(4711))
    assert repository.find_job(run_key="nothing") is None


@pytest.mark.parametrize("field", ["run_key", "output_uri"])
def test_a_run_key_and_an_output_belong_to_one_job(repository: Repository, field: str) -> None:
    first = repository.create_job(new_job())

    with pytest.raises(JobConflict, match=f"job {first.id} .*choose another output"):
        repository.create_job(new_job(**{field: getattr(first, field)}))


def test_an_ended_job_can_be_retired_so_that_its_output_is_free_again(repository: Repository) -> None:
    first = repository.create_job(new_job())
    assert not repository.retire_job(first.id)  # it is open

    repository.fail_job(first.id, None, "no such model")
    assert repository.retire_job(first.id)
    second = repository.create_job(new_job(run_key=first.run_key, output_uri=first.output_uri))

    assert repository.find_job(run_key=first.run_key) == second
    assert [job.id for job in repository.list_jobs()][:2] == [second.id, first.id]


def test_jobs_are_listed_newest_first(repository: Repository) -> None:
    ids = [repository.create_job(new_job()).id for _ in range(3)]

    assert [job.id for job in repository.list_jobs(limit=2)] == [ids[2], ids[1]]


def test_only_one_process_may_plan_a_job_until_its_lease_is_over(repository: Repository) -> None:
    job = repository.create_job(new_job())

    assert repository.claim_job(job.id, "first", LEASE) == 1
    assert repository.claim_job(job.id, "second", LEASE) is None
    repository.renew_job(job.id, 1, OVER)
    assert repository.claim_job(job.id, "second", LEASE) == 2

    with pytest.raises(Fenced, match="epoch 1 may not renew"):
        repository.renew_job(job.id, 1, LEASE)
    with pytest.raises(Fenced, match="epoch 1 may not store its plan"):
        repository.queue_job(job.id, 1, plan(0), [])


def test_a_plan_is_stored_with_all_its_shards(repository: Repository) -> None:
    job = queued_job(repository, num_shards=1203, rows=3)

    shards = repository.shards(job.id)

    assert (job.state, job.plan, job.rows_total, job.shards_total) == (JobState.QUEUED, plan(3609), 3609, 1203)
    assert [shard.idx for shard in shards] == list(range(1203))
    assert shards[-1].row_hi == 3609
    assert {shard.state for shard in shards} == {ShardState.READY}


def test_rows_are_counted_per_sample(repository: Repository) -> None:
    job = queued_job(repository, num_shards=2, rows=10, samples=4)

    assert job.rows_total == 80
    assert [shard.num_outputs for shard in repository.shards(job.id)] == [40, 40]


def test_a_plan_whose_answer_was_lost_can_be_stored_again(repository: Repository) -> None:
    job = queued_job(repository, num_shards=2)

    again = repository.queue_job(job.id, 1, plan(20), [NewShard(idx=0, row_lo=0, row_hi=20, cost_tokens=1)])

    assert again == job
    assert len(repository.shards(job.id)) == 2


def test_a_plan_that_breaks_off_leaves_nothing(repository: Repository) -> None:
    job = repository.create_job(new_job())
    repository.claim_job(job.id, "submit", LEASE)

    def broken() -> object:
        yield NewShard(idx=0, row_lo=0, row_hi=10, cost_tokens=1)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        repository.queue_job(job.id, 1, plan(10), broken())  # type: ignore[arg-type]

    assert repository.shards(job.id) == []
    assert repository.get_job(job.id).state == JobState.VALIDATING


def test_the_last_commit_moves_the_job_to_finalizing(repository: Repository) -> None:
    job = queued_job(repository, num_shards=2)
    first, second = (claimed(repository, shard).shard for shard in repository.shards(job.id))

    finish(repository, first)
    assert repository.get_job(job.id).state == JobState.IN_PROGRESS
    finish(repository, second)

    assert repository.get_job(job.id).state == JobState.FINALIZING
    assert [waiting.id for waiting in repository.advance_jobs()] == [job.id]


def test_a_job_is_published_once_by_one_finaliser(repository: Repository) -> None:
    shard = running_shard(repository)
    finish(repository, shard)

    epoch = repository.claim_job(shard.job_id, "reconciler", LEASE)
    assert epoch == 2
    assert repository.advance_jobs() == []  # somebody is at it
    job = repository.complete_job(shard.job_id, epoch, "3a9")

    assert (job.state, job.rows_succeeded, job.shards_done) == (JobState.COMPLETED, 10, 1)
    assert job.finished_at is not None
    assert repository.complete_job(shard.job_id, epoch, "3a9") == job  # a lost answer
    with pytest.raises(Fenced):
        repository.complete_job(shard.job_id, epoch - 1, "other")
    repository.check_integrity()


def test_a_finaliser_whose_lease_ran_out_is_fenced_by_the_next(repository: Repository) -> None:
    shard = running_shard(repository)
    finish(repository, shard)
    old = repository.claim_job(shard.job_id, "slow", OVER)
    assert old is not None

    assert [waiting.id for waiting in repository.advance_jobs()] == [shard.job_id]
    new = repository.claim_job(shard.job_id, "fast", LEASE)

    assert new == old + 1
    with pytest.raises(Fenced, match=f"epoch {old} may not complete it"):
        repository.complete_job(shard.job_id, old, "3a9")


def test_a_job_cannot_be_published_while_shards_are_open(repository: Repository) -> None:
    job = queued_job(repository, num_shards=2)
    finish(repository, claimed(repository, repository.shards(job.id)[0]).shard)

    assert repository.claim_job(job.id, "reconciler", LEASE) is None
    assert repository.advance_jobs() == []


def test_a_job_of_which_no_row_succeeded_has_failed_and_says_why(repository: Repository) -> None:
    shard = running_shard(repository)
    finish(repository, shard, errored=10)
    epoch = repository.claim_job(shard.job_id, "reconciler", LEASE)
    assert epoch is not None

    job = repository.complete_job(shard.job_id, epoch, "3a9", cause="context_length")

    assert job.state == JobState.FAILED
    assert job.error == "none of 10 rows succeeded: context_length"


def test_a_job_whose_shards_were_all_given_up_names_the_commonest_cause(repository: Repository) -> None:
    shard = running_shard(repository, max_shard_attempts=1)
    repository.release_shard(shard.id, 1, reason="KeyError: 'x'", preempted=False)
    epoch = repository.claim_job(shard.job_id, "reconciler", LEASE)
    assert epoch is not None

    job = repository.complete_job(shard.job_id, epoch, "3a9")

    assert (job.state, job.rows_errored) == (JobState.FAILED, 10)
    assert job.error is not None
    assert "internal (KeyError: 'x')" in job.error
    repository.check_integrity()


def test_a_cancel_stops_waiting_shards_and_flags_running_ones(repository: Repository) -> None:
    job = queued_job(repository, num_shards=3)
    running = claimed(repository, repository.shards(job.id)[0]).shard

    job = repository.request_cancel(job.id)

    assert (job.state, job.cancel_requested) == (JobState.CANCELLING, True)
    assert [shard.state for shard in repository.shards(job.id)] == [
        ShardState.RUNNING,
        ShardState.CANCELLED,
        ShardState.CANCELLED,
    ]
    beat = repository.heartbeat("gpu0@a", [(running.id, running.epoch)], LEASE)
    assert beat.held == beat.cancelled == {running.id}
    assert repository.advance_jobs() == []  # one shard is still at it
    repository.check_integrity()


def test_a_cancelled_job_keeps_what_was_finished_and_counts_the_rest(repository: Repository) -> None:
    job = queued_job(repository, num_shards=3)
    running = claimed(repository, repository.shards(job.id)[0]).shard
    repository.request_cancel(job.id)

    seal_all(repository, running, succeeded=4)
    repository.release_shard(running.id, running.epoch, reason="cancelled", preempted=True)
    assert shard_now(repository, running).state == ShardState.CANCELLED
    assert [waiting.id for waiting in repository.advance_jobs()] == [job.id]
    epoch = repository.claim_job(job.id, "reconciler", LEASE)
    assert epoch is not None
    job = repository.complete_job(job.id, epoch, "3a9")

    assert (job.state, job.rows_succeeded, job.rows_canceled) == (JobState.CANCELLED, 4, 26)
    repository.check_integrity()


def test_a_commit_that_comes_before_the_worker_saw_the_cancel_counts(repository: Repository) -> None:
    running = running_shard(repository)
    repository.request_cancel(running.job_id)

    finish(repository, running)

    assert repository.get_job(running.job_id).rows_succeeded == 10
    assert [job.state for job in repository.advance_jobs()] == [JobState.CANCELLING]


def test_a_job_that_was_never_planned_is_cancelled_at_once(repository: Repository) -> None:
    job = repository.create_job(new_job())
    epoch = repository.claim_job(job.id, "submit", LEASE)
    assert epoch is not None

    assert repository.request_cancel(job.id).state == JobState.CANCELLED

    with pytest.raises(Fenced, match="is cancelled"):
        repository.queue_job(job.id, epoch, plan(0), [])


def test_a_job_that_is_being_published_completes_in_spite_of_a_cancel(repository: Repository) -> None:
    shard = running_shard(repository)
    finish(repository, shard)
    epoch = repository.claim_job(shard.job_id, "reconciler", LEASE)
    assert epoch is not None

    assert repository.request_cancel(shard.job_id).state == JobState.FINALIZING
    assert repository.complete_job(shard.job_id, epoch, "3a9").state == JobState.COMPLETED
    assert repository.request_cancel(shard.job_id).state == JobState.COMPLETED


def test_a_failed_job_fences_its_workers(repository: Repository) -> None:
    running = running_shard(repository)

    repository.fail_job(running.job_id, None, "the output disk is gone")
    repository.fail_job(running.job_id, None, "a second reason")

    job = repository.get_job(running.job_id)
    assert (job.state, job.error, job.rows_canceled) == (JobState.FAILED, "the output disk is gone", 10)
    assert repository.heartbeat("gpu0@a", [(running.id, running.epoch)], LEASE).held == frozenset()
    with pytest.raises(Fenced):
        commit(repository, running)
    repository.check_integrity()


def test_only_the_present_planner_may_fail_a_job(repository: Repository) -> None:
    job = repository.create_job(new_job())
    repository.claim_job(job.id, "slow", OVER)
    epoch = repository.claim_job(job.id, "fast", LEASE)
    assert epoch is not None

    with pytest.raises(Fenced, match="may not fail it"):
        repository.fail_job(job.id, epoch - 1, "too late")
    repository.fail_job(job.id, epoch, "row 7 has no prompt")

    assert repository.get_job(job.id).error == "row 7 has no prompt"
