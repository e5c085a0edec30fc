"""Laws of files that turn out to be damaged, which hold on every database."""

from __future__ import annotations

import pytest

from storage.errors import Fenced
from storage.records import Damage, Job, Piece, RunStats, Shard
from storage.repository import Repository
from storage.states import JobState, ShardState
from tests.conformance.samples import (
    LEASE,
    claimed,
    commit,
    finish,
    queued_job,
    running_shard,
    seal_all,
    segment,
    shard_now,
    stats_of,
)
from tests.conformance.suspects import crash, crashed_alone

WHY = "part-00001.parquet is missing"


def published_by(repository: Repository, job: Job) -> int:
    epoch = repository.claim_job(job.id, "reconciler", LEASE)
    assert epoch is not None
    return epoch


def damaged(shard: Shard, *lost: int, pieces: tuple[Piece, ...] = ()) -> Damage:
    return Damage(shard_id=shard.id, epoch=shard.epoch, error=WHY, attempts=lost, pieces=pieces)


def counts(job: Job) -> tuple[int, int, int]:
    return job.rows_succeeded, job.rows_errored, job.rows_canceled


def test_a_committed_shard_whose_file_is_damaged_is_merged_again_from_its_segments(repository: Repository) -> None:
    job = queued_job(repository, num_shards=2)
    first, second = (claimed(repository, shard).shard for shard in repository.shards(job.id))
    finish(repository, first)
    finish(repository, second, succeeded=9, errored=1)
    epoch = published_by(repository, job)

    reopened = repository.reopen_shards(job.id, epoch, [damaged(first)])

    assert (reopened.state, reopened.shards_done, counts(reopened)) == (JobState.IN_PROGRESS, 1, (19, 1, 0))
    found = shard_now(repository, first)
    assert (found.state, found.out_key, found.reopenings, found.error) == (ShardState.READY, None, 1, WHY)
    assert [each.rows for each in repository.segments(first.id)] == [10]
    repository.check_integrity()
    again = claimed(repository, found).shard
    commit(repository, again)
    assert again.epoch == 2
    assert repository.complete_job(job.id, published_by(repository, job), "3a9").state == JobState.COMPLETED
    repository.check_integrity()


def test_what_an_attempt_sealed_is_dropped_with_its_counters_and_statistics(repository: Repository) -> None:
    shard = running_shard(repository)
    seal_all(repository, shard, succeeded=3, errored=1)
    repository.release_shard(shard.id, 1, reason="drain", preempted=True)
    second = claimed(repository, shard).shard
    seal_all(repository, second, succeeded=6)
    commit(repository, second)
    epoch = published_by(repository, repository.get_job(shard.job_id))

    job = repository.reopen_shards(shard.job_id, epoch, [damaged(second, 1)])

    assert counts(job) == (6, 0, 0)
    assert [each.epoch for each in repository.segments(shard.id)] == [2]
    stats, kept = repository.job_stats(shard.job_id), stats_of(6)
    assert (stats.rows, stats.cached_tokens, stats.limited_by) == (6, kept.cached_tokens, kept.limited_by)
    assert [group.blocks_allocated for group in stats.groups] == [12, 0]
    assert stats.wasted_tokens == 4 * (3 + 5)  # what the four rows computed and generated
    repository.check_integrity()
    third = claimed(repository, shard).shard
    seal_all(repository, third, succeeded=4)
    commit(repository, third)
    repository.check_integrity()


def test_a_running_attempt_drops_what_an_earlier_one_has_sealed(repository: Repository) -> None:
    shard = running_shard(repository)
    seal_all(repository, shard, succeeded=3, errored=1)
    repository.release_shard(shard.id, 1, reason="drain", preempted=True)
    second = claimed(repository, shard).shard

    for _ in range(2):  # its answer may be lost
        repository.drop_segments(shard.id, 2, [1], WHY)

    assert counts(repository.get_job(shard.job_id)) == (0, 0, 0)
    assert repository.segments(shard.id) == []
    repository.check_integrity()
    with pytest.raises(Fenced):
        repository.drop_segments(shard.id, 1, [2], WHY)
    finish(repository, second)
    repository.check_integrity()


def test_rows_that_were_given_up_run_again_with_those_that_were_lost(repository: Repository) -> None:
    shard = running_shard(repository, max_shard_attempts=1)
    seal_all(repository, shard, succeeded=4)
    repository.release_shard(shard.id, 1, reason="KeyError", preempted=False)
    job = repository.get_job(shard.job_id)
    assert counts(job) == (4, 6, 0)

    job = repository.reopen_shards(job.id, published_by(repository, job), [damaged(shard, 1)])

    assert counts(job) == (0, 0, 0)
    assert repository.dead_rows(job.id) == []
    repository.check_integrity()
    finish(repository, claimed(repository, shard).shard)
    repository.check_integrity()


def test_lost_rows_of_a_split_shard_become_a_part_of_their_own(repository: Repository) -> None:
    split = crashed_alone(repository, succeeded=6)
    repository.split_shard(split.id, split.epoch, [Piece(row_lo=6, row_hi=10, num_outputs=4)])
    part = repository.shards(split.job_id)[-1]
    finish(repository, repository.claim_shard(part.id, "w", LEASE, alone=True).shard, succeeded=4)  # type: ignore[union-attr]
    job = repository.get_job(split.job_id)
    lost = damaged(shard_now(repository, split), 1, pieces=(Piece(row_lo=0, row_hi=6, num_outputs=6),))

    job = repository.reopen_shards(job.id, published_by(repository, job), [lost])

    assert (job.state, job.shards_total, counts(job)) == (JobState.IN_PROGRESS, 2, (4, 0, 0))
    [new] = [shard for shard in repository.shards(job.id) if shard.state == ShardState.READY]
    assert (new.row_lo, new.row_hi, new.parent_id, new.is_suspect) == (0, 6, split.id, True)
    repository.check_integrity()


def test_a_row_that_was_given_up_alone_runs_alone_once_more(repository: Repository) -> None:
    shard = crashed_alone(repository, rows=1, succeeded=0)
    assert repository.give_up_shard(shard.id, shard.epoch)
    job = repository.get_job(shard.job_id)

    repository.reopen_shards(job.id, published_by(repository, job), [damaged(shard_now(repository, shard), 1)])

    assert repository.crashed_shards() == []
    assert shard_now(repository, shard).is_suspect
    assert crash(repository, shard).state == ShardState.READY
    assert [found.id for found in repository.crashed_shards()] == [shard.id]


@pytest.mark.parametrize("late", [False, True])
def test_nothing_of_a_cancelled_job_runs_again(repository: Repository, late: bool) -> None:
    job = queued_job(repository, num_shards=1)
    shard = claimed(repository, repository.shards(job.id)[0]).shard
    if not late:
        repository.request_cancel(job.id)
    seal_all(repository, shard, succeeded=4)
    repository.seal_segment(shard.id, segment(shard, seq=1, succeeded=6), RunStats())
    commit(repository, shard)
    epoch = published_by(repository, job)
    if late:
        repository.request_cancel(job.id)  # until now it would have completed all the same

    job = repository.reopen_shards(job.id, epoch, [damaged(shard, 1)])

    assert (job.state, counts(job)) == (JobState.CANCELLING, (0, 0, 0))
    assert shard_now(repository, shard).state == ShardState.CANCELLED
    repository.check_integrity()
    ended = repository.complete_job(job.id, published_by(repository, job), "3a9")
    assert (ended.state, counts(ended)) == (JobState.CANCELLED, (0, 0, 10))
    repository.check_integrity()


def test_rows_that_a_stopped_job_gave_up_stay_given_up(repository: Repository) -> None:
    job = queued_job(repository, num_shards=1, max_shard_attempts=1)
    shard = claimed(repository, repository.shards(job.id)[0]).shard
    seal_all(repository, shard, succeeded=4)
    repository.release_shard(shard.id, 1, reason="KeyError", preempted=False)
    epoch = published_by(repository, job)
    repository.request_cancel(job.id)

    job = repository.reopen_shards(job.id, epoch, [damaged(shard, 1)])

    assert (shard_now(repository, shard).state, counts(job)) == (ShardState.DEAD, (0, 10, 0))
    repository.check_integrity()


def test_a_reopening_whose_answer_was_lost_can_be_repeated(repository: Repository) -> None:
    shard = running_shard(repository)
    finish(repository, shard)
    job = repository.get_job(shard.job_id)
    epoch = published_by(repository, job)

    for _ in range(2):
        job = repository.reopen_shards(job.id, epoch, [damaged(shard)])

    assert (job.state, job.shards_done, shard_now(repository, shard).reopenings) == (JobState.IN_PROGRESS, 0, 1)


def test_only_the_present_finaliser_may_reopen(repository: Repository) -> None:
    shard = running_shard(repository)
    finish(repository, shard)
    job = repository.get_job(shard.job_id)
    epoch = published_by(repository, job)
    repository.complete_job(job.id, epoch, "3a9")

    for number in (epoch - 1, epoch):
        with pytest.raises(Fenced, match="may not reopen its shards"):
            repository.reopen_shards(job.id, number, [damaged(shard)])

    assert shard_now(repository, shard).state == ShardState.DONE
    assert repository.get_job(job.id).rows_succeeded == 10
