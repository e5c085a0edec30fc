"""Laws of shards that crash their workers, which hold on every database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storage.errors import Fenced
from storage.records import Piece, Shard
from storage.repository import Repository
from storage.states import JobState, ShardState
from tests.conformance.samples import (
    LEASE,
    MANY,
    OVER,
    claimed,
    commit,
    finish,
    out_key,
    queued_job,
    running_shard,
    seal_all,
    segment,
    shard_now,
    stats_of,
)


def crash(repository: Repository, shard: Shard, *, times: int = 1, owner: str = "gpu0@a") -> Shard:
    """The shard after so many workers died while they ran it alone."""
    for _ in range(times):
        assert repository.claim_shard(shard.id, owner, OVER, alone=True) is not None
        repository.expire_leases(MANY)
    return shard_now(repository, shard)


def crashed_alone(repository: Repository, *, rows: int = 10, **sealed: int) -> Shard:
    """The only shard of a job, which has killed two workers and then one that ran it alone; some of its rows sealed."""
    job = queued_job(repository, num_shards=1, rows=rows)
    shard = repository.shards(job.id)[0]
    if sealed:
        seal_all(repository, claimed(repository, shard).shard, **sealed)
        repository.release_shard(shard.id, 1, reason="drain", preempted=True)
    return crash(repository, shard, times=3)


def test_crashes_failures_and_preemptions_are_counted_apart(repository: Repository) -> None:
    shard = running_shard(repository)

    repository.release_shard(shard.id, 1, reason="drain", preempted=True)
    claimed(repository, shard)
    repository.release_shard(shard.id, 2, reason="KeyError", preempted=False)
    claimed(repository, shard)
    repository.release_shard(shard.id, 3, reason="EngineDead", preempted=False, crashed=True)

    found = shard_now(repository, shard)
    assert (found.crashes, found.failures, found.preemptions) == (1, 1, 1)
    assert repository.get_job(shard.job_id).state == JobState.IN_PROGRESS
    repository.check_integrity()


def test_from_two_crashes_on_a_shard_is_dispatched_last_and_claimed_only_by_a_worker_that_runs_nothing_else(
    repository: Repository,
) -> None:
    job = queued_job(repository, num_shards=3)
    first, *others = repository.shards(job.id)
    assert not crash(repository, first).is_suspect
    suspect = crash(repository, first)

    hints = repository.dispatch(None, 8, LEASE)

    assert suspect.is_suspect
    assert [(hint.shard_id, hint.alone) for hint in hints] == [
        (others[0].id, False),
        (others[1].id, False),
        (first.id, True),
    ]
    assert repository.claim_shard(first.id, "gpu0@a", LEASE) is None
    assert claimed(repository, others[0]).shard.epoch == 1
    assert repository.claim_shard(first.id, "gpu1@a", LEASE, alone=True) is not None
    repository.check_integrity()


def test_a_suspected_shard_that_runs_to_its_end_is_done(repository: Repository) -> None:
    job = queued_job(repository, num_shards=1)
    crash(repository, repository.shards(job.id)[0], times=2)

    claim = repository.claim_shard(repository.shards(job.id)[0].id, "gpu0@a", LEASE, alone=True)
    assert claim is not None
    finish(repository, claim.shard)

    assert repository.get_job(job.id).state == JobState.FINALIZING
    assert repository.crashed_shards() == []
    repository.check_integrity()


def test_a_shard_that_crashed_alone_waits_to_be_divided(repository: Repository) -> None:
    shard = crashed_alone(repository)

    assert repository.crashed_shards() == [shard]
    assert repository.dispatch(None, 8, LEASE) == []
    assert repository.claim_shard(shard.id, "gpu0@a", LEASE, alone=True) is None
    repository.check_integrity()


def test_a_split_leaves_sealed_rows_where_they_are_and_suspects_both_pieces(repository: Repository) -> None:
    parent = crashed_alone(repository, succeeded=3, errored=1)
    pieces = [Piece(row_lo=4, row_hi=5, num_outputs=1), Piece(row_lo=5, row_hi=10, num_outputs=5)]

    assert repository.split_shard(parent.id, parent.epoch, pieces)
    assert not repository.split_shard(parent.id, parent.epoch, pieces)  # another reconciler

    split, guilty, rest = repository.shards(parent.job_id)
    job = repository.get_job(parent.job_id)
    assert (split.state, job.shards_total, job.rows_succeeded, job.rows_errored) == (ShardState.SPLIT, 2, 3, 1)
    assert [(each.row_lo, each.row_hi, each.num_outputs, each.idx, each.row_group) for each in (guilty, rest)] == [
        (4, 5, 1, 1, 0),
        (5, 10, 5, 2, 0),
    ]
    assert all(each.is_suspect and each.parent_id == parent.id for each in (guilty, rest))
    assert [found.rows for found in repository.parent_segments(rest.id)] == [4]
    assert repository.segments(rest.id) == []
    assert [hint.alone for hint in repository.dispatch(None, 8, LEASE)] == [True, True]
    repository.check_integrity()


def test_a_job_is_done_when_the_pieces_of_its_pieces_are(repository: Repository) -> None:
    parent = crashed_alone(repository)
    repository.split_shard(
        parent.id, parent.epoch, [Piece(row_lo=0, row_hi=2, num_outputs=2), Piece(row_lo=2, row_hi=10, num_outputs=8)]
    )
    _, first, rest = repository.shards(parent.job_id)
    first = crash(repository, first)
    repository.split_shard(
        first.id, first.epoch, [Piece(row_lo=0, row_hi=1, num_outputs=1), Piece(row_lo=1, row_hi=2, num_outputs=1)]
    )
    guilty, innocent = (each for each in repository.shards(parent.job_id) if each.parent_id == first.id)
    guilty = crash(repository, guilty)

    assert repository.give_up_shard(guilty.id, guilty.epoch)
    assert not repository.give_up_shard(guilty.id, guilty.epoch)
    for shard, rows in ((innocent, 1), (rest, 8)):
        claim = repository.claim_shard(shard.id, "gpu0@a", LEASE, alone=True)
        assert claim is not None
        finish(repository, claim.shard, succeeded=rows)

    job = repository.get_job(parent.job_id)
    assert (job.state, job.rows_succeeded, job.rows_errored) == (JobState.FINALIZING, 9, 1)
    assert (job.shards_total, job.shards_done) == (3, 2)
    assert repository.dead_rows(job.id) == [(0, 1, "engine_killer")]
    repository.check_integrity()


def test_a_shard_whose_rows_are_all_sealed_ends_without_pieces(repository: Repository) -> None:
    parent = crashed_alone(repository, succeeded=10)

    assert repository.split_shard(parent.id, parent.epoch, [])

    job = repository.get_job(parent.job_id)
    assert (job.state, job.shards_total, job.rows_succeeded) == (JobState.FINALIZING, 0, 10)
    repository.check_integrity()


def test_a_shard_is_divided_only_under_the_epoch_that_crashed(repository: Repository) -> None:
    shard = crashed_alone(repository)

    assert not repository.give_up_shard(shard.id, shard.epoch - 1)
    assert not repository.split_shard(shard.id, shard.epoch - 1, [Piece(row_lo=0, row_hi=10, num_outputs=10)])

    assert shard_now(repository, shard).state == ShardState.READY


def test_pieces_must_hold_what_is_not_sealed(repository: Repository) -> None:
    parent = crashed_alone(repository, succeeded=4)

    with pytest.raises(AssertionError, match="has 6 rows left"):
        repository.split_shard(parent.id, parent.epoch, [Piece(row_lo=4, row_hi=10, num_outputs=5)])

    assert shard_now(repository, parent).state == ShardState.READY


def test_a_zombie_of_a_split_shard_can_seal_and_commit_nothing(repository: Repository) -> None:
    parent = crashed_alone(repository)
    repository.split_shard(parent.id, parent.epoch, [Piece(row_lo=0, row_hi=10, num_outputs=10)])

    with pytest.raises(Fenced, match="is split under epoch 3"):
        repository.seal_segment(parent.id, segment(parent), stats_of(10))
    with pytest.raises(Fenced):
        commit(repository, parent)


def test_pieces_of_a_cancelled_job_are_cancelled(repository: Repository) -> None:
    parent = crashed_alone(repository)
    repository.split_shard(parent.id, parent.epoch, [Piece(row_lo=0, row_hi=10, num_outputs=10)])

    repository.request_cancel(parent.job_id)

    assert [shard.state for shard in repository.shards(parent.job_id)] == [ShardState.SPLIT, ShardState.CANCELLED]
    repository.check_integrity()


def test_one_death_of_a_worker_counts_once_for_a_job_however_many_shards_it_ran(repository: Repository) -> None:
    job = queued_job(repository, num_shards=4)
    shards = repository.shards(job.id)
    for owner, mine in (("gpu0@a", shards[:3]), ("gpu1@a", shards[3:])):
        for shard in mine:
            claimed(repository, shard, owner=owner, lease=OVER)

    repository.expire_leases(3)
    assert repository.get_job(job.id).state == JobState.IN_PROGRESS  # two have died
    claimed(repository, shards[0], owner="gpu2@a", lease=OVER)
    repository.expire_leases(3)

    assert repository.get_job(job.id).state == JobState.FAILING
    repository.check_integrity()


def test_a_job_that_killed_too_many_workers_is_published_and_has_failed(repository: Repository) -> None:
    job = queued_job(repository, num_shards=3)
    done, lost, running = repository.shards(job.id)
    finish(repository, claimed(repository, done).shard)
    held = claimed(repository, running, owner="gpu1@a").shard
    claimed(repository, lost, lease=OVER)

    repository.expire_leases(1)

    beat = repository.heartbeat("gpu1@a", [(held.id, held.epoch)], LEASE)
    assert (beat.held, beat.cancelled) == ({held.id}, {held.id})
    repository.release_shard(held.id, held.epoch, reason="cancelled", preempted=True)
    [waiting] = repository.advance_jobs()
    epoch = repository.claim_job(waiting.id, "reconciler", LEASE)
    assert epoch is not None
    ended = repository.complete_job(waiting.id, epoch, "3a9")
    assert (ended.state, ended.rows_succeeded, ended.rows_canceled) == (JobState.FAILED, 10, 20)
    assert "workers died 1 times while they ran it" in (ended.error or "")
    repository.check_integrity()


def test_a_part_is_committed_with_its_own_rows_alone(repository: Repository) -> None:
    parent = crashed_alone(repository, succeeded=4)
    repository.split_shard(parent.id, parent.epoch, [Piece(row_lo=4, row_hi=10, num_outputs=6)])
    part = repository.shards(parent.job_id)[1]
    claim = repository.claim_shard(part.id, "gpu0@a", LEASE, alone=True)
    assert claim is not None

    finish(repository, claim.shard, succeeded=6)

    done = shard_now(repository, part)
    assert (done.state, done.out_rows, done.out_key) == (ShardState.DONE, 6, out_key(replace(part, epoch=1)))
    repository.check_integrity()
