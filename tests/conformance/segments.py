"""Laws of sealed rows and their counters that hold on every database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storage.errors import Fenced
from storage.records import GroupStats, RunStats
from storage.repository import Repository
from storage.states import ShardState
from tests.conformance.samples import (
    LEASE,
    OVER,
    claimed,
    commit,
    finish,
    out_key,
    queued_job,
    running_shard,
    segment,
    shard_now,
    stats_of,
)


def test_a_segment_is_recorded_with_its_counts_and_statistics(repository: Repository) -> None:
    shard = running_shard(repository)
    sealed = segment(shard, succeeded=6, errored=2, expired=1)

    repository.seal_segment(shard.id, sealed, stats_of(9))

    job = repository.get_job(shard.job_id)
    stats = repository.job_stats(shard.job_id)
    assert repository.segments(shard.id) == [sealed]
    assert (job.rows_succeeded, job.rows_errored, job.rows_expired, job.rows_done) == (6, 2, 1, 9)
    assert (stats.rows, stats.prompt_tokens, stats.cached_tokens, stats.computed_tokens) == (9, 90, 63, 27)
    assert stats.engine_seconds == 4.5
    assert (stats.planned_tokens, stats.limited_by) == (81, (("last token", 9), ("sliding", 18)))
    assert [(group.kind, group.blocks_allocated, group.blocks_evicted) for group in stats.groups] == [
        ("full", 18, 0),
        ("sliding", 0, 9),
    ]
    assert [(group.layers, group.window) for group in stats.groups] == [(3, None), (15, 512)]
    repository.check_integrity()


def test_limits_are_kept_by_name_with_their_tokens(repository: Repository) -> None:
    shard = running_shard(repository)
    limits = [(("full", 4), ("Sliding", 2)), (("full", 3), ("block size", 1)), ()]

    for seq, limited_by in enumerate(limits):
        sealed = segment(shard, seq=seq, succeeded=3)
        repository.seal_segment(shard.id, sealed, stats_of(3, limited_by=limited_by))

    assert repository.job_stats(shard.job_id).limited_by == (("Sliding", 2), ("block size", 1), ("full", 7))
    repository.check_integrity()


def test_a_group_of_state_slots_is_kept_with_its_kind(repository: Repository) -> None:
    shard = running_shard(repository)
    slots = GroupStats(index=1, kind="linear", layers=6, block_size=0, window=None, blocks_allocated=9, blocks_peak=4.0)
    stats = stats_of(9)

    repository.seal_segment(shard.id, segment(shard, succeeded=9), replace(stats, groups=(stats.groups[0], slots)))

    full, linear = repository.job_stats(shard.job_id).groups
    assert (full.kind, full.blocks_allocated) == ("full", 18)
    assert linear == slots
    repository.check_integrity()


def test_a_seal_whose_answer_was_lost_counts_once(repository: Repository) -> None:
    shard = running_shard(repository)

    for _ in range(3):
        repository.seal_segment(shard.id, segment(shard), stats_of(10))

    assert repository.get_job(shard.job_id).rows_succeeded == 10
    stats = repository.job_stats(shard.job_id)
    assert (stats.prompt_tokens, stats.planned_tokens) == (100, 90)
    assert stats.limited_by == (("last token", 10), ("sliding", 20))


def test_a_zombie_can_seal_nothing(repository: Repository) -> None:
    zombie = running_shard(repository, lease=OVER)
    claimed(repository, zombie, owner="gpu1@a")

    with pytest.raises(Fenced, match=r"epoch 1 may not seal segment .*e1-0000"):
        repository.seal_segment(zombie.id, segment(zombie), stats_of(10))

    assert repository.segments(zombie.id) == []
    assert repository.job_stats(zombie.job_id) == RunStats()
    repository.check_integrity()


def test_sums_over_attempts_equal_a_recount(repository: Repository) -> None:
    job = queued_job(repository, num_shards=2)
    lost, other = (claimed(repository, shard, lease=OVER).shard for shard in repository.shards(job.id))
    repository.seal_segment(lost.id, segment(lost, succeeded=4), stats_of(4))
    finish(repository, other)

    again = claimed(repository, lost).shard
    repository.seal_segment(again.id, segment(again, seq=0, succeeded=5), stats_of(5))
    repository.seal_segment(again.id, segment(again, seq=1, errored=1), stats_of(1))
    commit(repository, again)

    assert [(found.epoch, found.seq, found.rows) for found in repository.segments(lost.id)] == [
        (1, 0, 4),
        (2, 0, 5),
        (2, 1, 1),
    ]
    stats = repository.job_stats(job.id)
    assert (stats.rows, stats.prompt_tokens, stats.completion_tokens) == (20, 200, 100)
    assert (stats.planned_tokens, stats.limited_by) == (180, (("last token", 20), ("sliding", 40)))
    assert stats.groups[0].blocks_allocated == 40
    repository.check_integrity()


def test_a_committed_shard_is_done_and_says_where(repository: Repository) -> None:
    shard = running_shard(repository)
    finish(repository, shard)

    done = shard_now(repository, shard)

    assert (done.state, done.out_key, done.out_rows) == (ShardState.DONE, out_key(shard), 10)
    assert (done.out_sha256, done.lease_owner) == ("5ade", None)
    assert repository.get_job(shard.job_id).shards_done == 1


def test_a_commit_whose_answer_was_lost_can_be_repeated(repository: Repository) -> None:
    shard = running_shard(repository)
    finish(repository, shard)

    commit(repository, shard)

    assert repository.get_job(shard.job_id).shards_done == 1
    with pytest.raises(Fenced, match="is done under epoch 1"):
        repository.commit_shard(shard.id, 1, "another file", "5ade", 10, RunStats())


def test_peaks_are_the_highest_and_means_are_weighted_by_engine_time(repository: Repository) -> None:
    job = queued_job(repository, num_shards=2)
    long, short = (claimed(repository, shard).shard for shard in repository.shards(job.id))
    repository.seal_segment(long.id, segment(long), stats_of(10, engine_seconds=3.0))
    repository.seal_segment(short.id, segment(short), stats_of(10, engine_seconds=1.0))

    for shard, peak, mean in ((long, 12.0, 8.0), (short, 20.5, 4.0)):
        full = GroupStats(
            index=0,
            kind="full",
            layers=3,
            block_size=16,
            window=None,
            blocks_allocated=999,
            blocks_peak=peak,
            blocks_mean=mean,
        )
        repository.commit_shard(
            shard.id, 1, out_key(shard), "5ade", 10, RunStats(groups=(full,), limited_by=(("full", 9),))
        )

    stats = repository.job_stats(job.id)
    full_group = stats.groups[0]
    assert (full_group.blocks_peak, full_group.blocks_mean) == (20.5, 7.0)
    assert full_group.blocks_allocated == 40  # counters come with segments alone, and so do limits
    assert stats.limited_by == (("last token", 20), ("sliding", 40))


def test_counts_that_do_not_add_up_are_our_bug(repository: Repository) -> None:
    shard = running_shard(repository)

    with pytest.raises(AssertionError, match="prompt tokens"):
        repository.seal_segment(shard.id, segment(shard), stats_of(10, cached_tokens=0))

    assert repository.segments(shard.id) == []


def test_jobs_do_not_share_statistics(repository: Repository) -> None:
    one, two = running_shard(repository), running_shard(repository)
    finish(repository, one)

    assert repository.job_stats(one.job_id).rows == 10
    assert repository.job_stats(two.job_id) == RunStats()
    assert repository.heartbeat("gpu0@a", [(two.id, 1)], LEASE).held == {two.id}
