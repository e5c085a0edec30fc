"""Laws of jobs that end before their last row because it was asked for at submit, on every database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storage.records import Job, NewShard
from storage.repository import Repository
from storage.states import JobState, ShardState
from tests.conformance.samples import (
    LEASE,
    OVER,
    claimed,
    finish,
    new_job,
    plan,
    queued_job,
    seal_all,
    segment,
    shard_now,
    stats_of,
)

PASSED = -1.0


def publish(repository: Repository, job: Job) -> Job:
    assert [waiting.id for waiting in repository.advance_jobs()] == [job.id]
    epoch = repository.claim_job(job.id, "reconciler", LEASE)
    assert epoch is not None
    return repository.complete_job(job.id, epoch, "3a9")


@pytest.mark.parametrize("paused", [False, True])
def test_a_job_whose_deadline_passes_is_published_as_expired(repository: Repository, paused: bool) -> None:
    job = queued_job(repository, num_shards=3, deadline_seconds=PASSED)
    done, running, waiting = repository.shards(job.id)
    finish(repository, claimed(repository, done).shard)
    shard = claimed(repository, running).shard
    if paused:
        repository.pause_job(job.id)

    [stopped] = repository.stop_jobs()

    assert stopped.state == JobState.EXPIRING
    assert "deadline: " in str(stopped.error)
    assert "10 of 30 rows done" in str(stopped.error)
    assert repository.stop_jobs() == []
    assert repository.claim_shard(waiting.id, "gpu0@a", LEASE) is None
    beat = repository.heartbeat("gpu0@a", [(shard.id, shard.epoch)], LEASE)
    assert beat.aborted == {shard.id}
    repository.check_integrity()

    seal_all(repository, shard, succeeded=4)
    repository.release_shard(shard.id, shard.epoch, reason="deadline", preempted=True)
    assert shard_now(repository, shard).state == ShardState.CANCELLED
    ended = publish(repository, job)

    assert (ended.state, ended.rows_succeeded, ended.rows_expired, ended.rows_canceled) == (
        JobState.EXPIRED,
        14,
        16,
        0,
    )
    assert ended.error == stopped.error
    repository.check_integrity()


def test_a_job_that_expires_before_its_plan_ends_at_once(repository: Repository) -> None:
    job = repository.create_job(new_job(deadline_seconds=PASSED))

    [stopped] = repository.stop_jobs()

    assert (stopped.id, stopped.state) == (job.id, JobState.EXPIRED)
    assert repository.retire_job(job.id)
    repository.check_integrity()


def test_a_deadline_may_be_a_moment_and_is_kept_with_the_job(repository: Repository) -> None:
    past = queued_job(repository, deadline_at=1.5)
    future = queued_job(repository, deadline_at=1e10)
    never = queued_job(repository)

    assert [job.id for job in repository.stop_jobs()] == [past.id]

    assert future.deadline is not None
    assert future.deadline.timestamp() == 1e10
    assert (never.deadline, never.max_error_rate) == (None, None)


def test_a_job_that_is_being_published_or_has_ended_does_not_expire(repository: Repository) -> None:
    job = queued_job(repository, num_shards=1, deadline_seconds=PASSED)
    finish(repository, claimed(repository, repository.shards(job.id)[0]).shard)

    assert repository.stop_jobs() == []
    assert publish(repository, job).state == JobState.COMPLETED
    assert repository.stop_jobs() == []


def test_an_expiring_job_whose_worker_died_is_published_all_the_same(repository: Repository) -> None:
    job = queued_job(repository, num_shards=1, deadline_seconds=PASSED)
    claimed(repository, repository.shards(job.id)[0], lease=OVER)
    repository.stop_jobs()

    assert [shard.state for shard in repository.expire_leases(5)] == [ShardState.CANCELLED]
    assert publish(repository, job).rows_expired == 10
    repository.check_integrity()


def test_a_cancel_of_a_job_that_is_stopped_already_changes_nothing(repository: Repository) -> None:
    job = queued_job(repository, deadline_seconds=PASSED)
    repository.stop_jobs()

    assert repository.request_cancel(job.id).state == JobState.EXPIRING
    assert publish(repository, job).state == JobState.EXPIRED


def test_a_job_of_which_more_rows_failed_than_may_of_all_fails_with_what_is_done_published(
    repository: Repository,
) -> None:
    job = queued_job(repository, num_shards=2, max_error_rate=0.1)
    first, second = repository.shards(job.id)
    shard = claimed(repository, first).shard
    seal_all(repository, shard, succeeded=3, errored=2)
    assert repository.stop_jobs() == []  # 2 of 20 may fail

    repository.seal_segment(shard.id, segment(shard, seq=1, errored=1), stats_of(1))
    [stopped] = repository.stop_jobs()

    assert stopped.state == JobState.FAILING
    assert "max_error_rate: 3 of 6 rows" in str(stopped.error)
    assert shard_now(repository, second).state == ShardState.CANCELLED
    repository.release_shard(shard.id, shard.epoch, reason="errors", preempted=True)
    ended = publish(repository, job)
    assert (ended.state, ended.rows_succeeded, ended.rows_errored, ended.rows_canceled) == (JobState.FAILED, 3, 3, 14)
    assert ended.error == stopped.error
    repository.check_integrity()


def test_a_job_fails_early_once_two_hundred_rows_have_run_and_too_many_failed(repository: Repository) -> None:
    job = queued_job(repository, num_shards=2, rows=1000, max_error_rate=0.5)
    shard = claimed(repository, repository.shards(job.id)[0]).shard
    seal_all(repository, shard, succeeded=0, errored=199)
    assert repository.stop_jobs() == []

    repository.seal_segment(shard.id, segment(shard, seq=1, errored=1), stats_of(1))

    assert [stopped.state for stopped in repository.stop_jobs()] == [JobState.FAILING]


def test_rows_that_submit_refused_say_nothing_of_those_that_run(repository: Repository) -> None:
    job = repository.create_job(new_job(max_error_rate=0.5))
    repository.claim_job(job.id, "submit", LEASE)
    refused = replace(plan(2000), num_errors=300)
    shards = [NewShard(idx=idx, row_lo=1000 * idx, row_hi=1000 * idx + 1000, cost_tokens=1) for idx in range(2)]
    job = repository.queue_job(job.id, 1, refused, shards)
    assert job.plan == refused
    shard = claimed(repository, repository.shards(job.id)[0]).shard

    seal_all(repository, shard, succeeded=200, errored=300)

    assert repository.stop_jobs() == []


def test_without_a_limit_every_row_may_fail(repository: Repository) -> None:
    job = queued_job(repository, num_shards=1, rows=500)
    shard = claimed(repository, repository.shards(job.id)[0]).shard

    seal_all(repository, shard, errored=499)

    assert repository.stop_jobs() == []


def test_a_job_that_was_over_before_anybody_looked_fails_all_the_same(repository: Repository) -> None:
    job = queued_job(repository, num_shards=1, max_error_rate=0.3)
    finish(repository, claimed(repository, repository.shards(job.id)[0]).shard, succeeded=6, errored=4)
    assert repository.stop_jobs() == []

    ended = publish(repository, job)

    assert (ended.state, ended.rows_succeeded) == (JobState.FAILED, 6)
    assert "max_error_rate: 4 of 10 rows" in str(ended.error)
