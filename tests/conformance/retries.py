"""Laws of rows that run again after their job was published, on every database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storage.errors import JobConflict
from storage.records import Job, JobId, NewGeneration, NewShard
from storage.repository import Repository
from storage.states import JobState, ShardState
from tests.conformance.samples import LEASE, claimed, finish, new_job, plan, queued_job, running_shard, seal_all


def published(repository: Repository, job_id: JobId, sha256: str = "sha") -> Job:
    """The job without an open shard, published by somebody."""
    repository.advance_jobs()
    epoch = repository.claim_job(job_id, "publisher", LEASE)
    assert epoch is not None
    return repository.complete_job(job_id, epoch, sha256)


def completed(repository: Repository, **counts: int) -> Job:
    shard = running_shard(repository)
    finish(repository, shard, **counts)
    return published(repository, shard.job_id)


def generation(number: int, rows: int, **kept: int) -> NewGeneration:
    path = f"_inprogress-{number:04d}/plan/plan.parquet"
    return NewGeneration(
        number=number,
        plan=replace(plan(rows), path=path, sha256=f"{number}b3c"),
        shards=(NewShard(idx=0, row_lo=0, row_hi=rows, cost_tokens=rows),),
        kept=kept,
    )


def counts(job: Job) -> tuple[int, ...]:
    return job.rows_total, job.rows_succeeded, job.rows_errored, job.rows_expired, job.rows_canceled


def test_rows_run_again_under_a_new_generation_and_the_counts_stay_true(repository: Repository) -> None:
    job = completed(repository, succeeded=7, errored=3)
    assert (job.generation, job.published_generation) == (1, 1)

    retried = repository.retry_job(job.id, generation(2, 3, succeeded=7))
    repository.check_integrity()
    [_, shard] = repository.shards(job.id)
    claim = claimed(repository, shard)
    finish(repository, claim.shard, succeeded=2, errored=1)
    repository.check_integrity()
    ended = published(repository, job.id, "sha2")

    assert (retried.state, counts(retried), retried.published_generation) == (JobState.QUEUED, (10, 7, 0, 0, 0), 1)
    assert (shard.idx, shard.row_group, shard.generation) == (1, 0, 2)
    assert claim.job.plan is not None
    assert claim.job.plan.path == "_inprogress-0002/plan/plan.parquet"
    assert (ended.state, counts(ended), ended.manifest_sha256) == (JobState.COMPLETED, (10, 9, 1, 0, 0), "sha2")
    assert (ended.generation, ended.published_generation, ended.shards_total, ended.shards_done) == (2, 2, 2, 2)
    stats = [repository.job_stats(job.id, number) for number in (None, 1, 2)]
    assert [each.rows for each in stats] == [13, 10, 3]
    assert [each.groups[0].blocks_shared for each in stats] == [13, 10, 3]
    assert [dict(each.limited_by)["last token"] for each in stats] == [13, 10, 3]
    repository.check_integrity()


def test_what_an_expired_job_left_can_run_without_its_deadline(repository: Repository) -> None:
    shard = running_shard(repository, deadline_seconds=-1.0)
    seal_all(repository, shard, succeeded=4)
    repository.stop_jobs()
    repository.release_shard(shard.id, shard.epoch, reason="expired", preempted=True)
    assert published(repository, shard.job_id).state is JobState.EXPIRED

    retried = repository.retry_job(shard.job_id, generation(2, 6, succeeded=4))

    assert (retried.state, counts(retried), retried.error) == (JobState.QUEUED, (10, 4, 0, 0, 0), None)
    assert repository.stop_jobs() == []
    repository.check_integrity()


def test_a_retried_job_can_be_cancelled_though_it_was_before(repository: Repository) -> None:
    job = queued_job(repository)
    repository.request_cancel(job.id, at_once=True)
    published(repository, job.id)

    repository.retry_job(job.id, generation(2, 20))
    assert claimed(repository, repository.shards(job.id)[-1]).job.cancel_requested is False
    cancelling = repository.request_cancel(job.id)

    assert cancelling.state is JobState.CANCELLING
    repository.check_integrity()


def test_a_retry_that_fails_leaves_the_generation_before_it_published(repository: Repository) -> None:
    job = completed(repository, succeeded=7, errored=3)
    repository.retry_job(job.id, generation(2, 3, succeeded=7))

    repository.fail_job(job.id, None, "the disk is broken")

    failed = repository.get_job(job.id)
    assert (failed.published_generation, failed.manifest_sha256, counts(failed)) == (1, "sha", (10, 7, 0, 0, 3))
    repository.check_integrity()
    assert repository.retry_job(job.id, generation(3, 3, succeeded=7)).generation == 3
    repository.check_integrity()


def test_rows_that_were_given_up_in_an_older_generation_are_its_own(repository: Repository) -> None:
    job = queued_job(repository, num_shards=1, max_shard_attempts=1)
    shard = claimed(repository, repository.shards(job.id)[0]).shard
    seal_all(repository, shard, succeeded=6)
    repository.release_shard(shard.id, shard.epoch, reason="broken", preempted=False)
    assert len(repository.dead_rows(job.id)) == 1
    published(repository, job.id)

    repository.retry_job(job.id, generation(2, 4, succeeded=6))

    assert repository.dead_rows(job.id) == []
    assert [shard.state for shard in repository.shards(job.id)] == [ShardState.DEAD, ShardState.READY]
    repository.check_integrity()


def test_only_an_ended_and_published_job_is_retried_and_only_once_at_a_time(repository: Repository) -> None:
    still_open = queued_job(repository)
    unpublished = repository.create_job(new_job())
    repository.fail_job(unpublished.id, None, "x")
    job = completed(repository, succeeded=7, errored=3)
    first = generation(2, 3, succeeded=7)
    repository.retry_job(job.id, first)

    assert repository.retry_job(job.id, first).generation == 2  # the answer was lost
    with pytest.raises(JobConflict, match="is queued; only the rows of a job that has ended"):
        repository.retry_job(still_open.id, first)
    with pytest.raises(JobConflict, match="has no published results"):
        repository.retry_job(unpublished.id, first)
    repository.fail_job(job.id, None, "x")
    other = replace(first, plan=replace(first.plan, path="_inprogress-0002/plan/other.parquet"))
    with pytest.raises(JobConflict, match="has got generation 2 meanwhile"):
        repository.retry_job(job.id, other)
    repository.check_integrity()
