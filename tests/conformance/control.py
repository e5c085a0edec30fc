"""Laws of what is asked of a job after its submission, on every database."""

from __future__ import annotations

import pytest

from storage.errors import Fenced, JobConflict, NoSuchJob
from storage.records import JobId
from storage.repository import Repository
from storage.states import JobState, ShardState
from tests.conformance.samples import (
    LEASE,
    OVER,
    claimed,
    commit,
    finish,
    new_job,
    queued_job,
    running_shard,
    seal_all,
    shard_now,
)


def test_options_are_kept_for_whoever_plans_the_job(repository: Repository) -> None:
    options = {"inputs": ["/in/naïve.parquet"], "order": "prefix", "limit": None}

    job = repository.create_job(new_job(options=options))

    assert repository.get_job(job.id).options == options


def test_a_job_without_a_planner_is_offered_once_it_is_old_enough(repository: Repository) -> None:
    fresh = repository.create_job(new_job())
    held = repository.create_job(new_job())
    dead = repository.create_job(new_job())
    queued_job(repository)
    repository.claim_job(held.id, "alive", LEASE)
    repository.claim_job(dead.id, "killed", OVER)

    assert [job.id for job in repository.unplanned_jobs(OVER)] == [fresh.id, dead.id]
    assert repository.unplanned_jobs(LEASE) == []


def test_a_planner_that_leaves_makes_room_for_the_next_at_once(repository: Repository) -> None:
    job = repository.create_job(new_job())
    repository.claim_job(job.id, "leaving", LEASE)

    repository.release_job(job.id, 1)

    assert repository.claim_job(job.id, "next", LEASE) == 2
    with pytest.raises(Fenced, match="epoch 1 may not release it"):
        repository.release_job(job.id, 1)
    assert repository.get_job(job.id).state == JobState.VALIDATING
    repository.check_integrity()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_publisher_that_leaves_makes_room_for_the_next_at_once(repository: Repository, stopped: bool) -> None:
    shard = running_shard(repository, rows=4, max_error_rate=0.5 if stopped else None)
    seal_all(repository, shard, succeeded=1, errored=3)
    assert len(repository.stop_jobs()) == stopped
    commit(repository, shard, rows=4)
    [before] = repository.advance_jobs()
    assert repository.claim_job(shard.job_id, "leaving", LEASE) == 2

    repository.release_job(shard.job_id, 2)

    assert repository.claim_job(shard.job_id, "next", LEASE) == 3
    with pytest.raises(Fenced, match="epoch 2 may not release it"):
        repository.release_job(shard.job_id, 2)
    now = repository.get_job(shard.job_id)
    assert (now.state, now.error) == (before.state, before.error)
    assert (now.error is not None) == stopped
    repository.check_integrity()


def test_a_paused_job_is_neither_dispatched_nor_claimed_until_it_is_resumed(repository: Repository) -> None:
    job = queued_job(repository, num_shards=2)
    hints = repository.dispatch(None, 1, LEASE)
    assert len(hints) == 1

    assert repository.pause_job(job.id).state == JobState.PAUSED
    assert repository.pause_job(job.id).state == JobState.PAUSED  # asked again
    assert repository.dispatch(None, 10, OVER) == []
    assert repository.claim_shard(hints[0].shard_id, "gpu0@a", LEASE) is None
    assert repository.waiting_models() == []
    assert repository.advance_jobs() == []
    repository.check_integrity()

    assert repository.resume_job(job.id).state == JobState.QUEUED
    again = repository.dispatch(None, 10, LEASE)  # the hint that was dropped is sent again, at once
    assert [hint.shard_id for hint in again] == [shard.id for shard in repository.shards(job.id)]
    repository.check_integrity()


def test_a_running_shard_of_a_paused_job_is_given_back_with_its_sealed_rows(repository: Repository) -> None:
    shard = running_shard(repository)
    seal_all(repository, shard, succeeded=4)

    repository.pause_job(shard.job_id)

    beat = repository.heartbeat("gpu0@a", [(shard.id, shard.epoch)], LEASE)
    assert (beat.held, beat.paused, beat.cancelled, beat.aborted) == ({shard.id}, {shard.id}, set(), set())
    repository.release_shard(shard.id, shard.epoch, reason="paused", preempted=True)
    released = shard_now(repository, shard)
    assert (released.state, released.preemptions, released.crashes) == (ShardState.READY, 1, 0)
    assert repository.get_job(shard.job_id).rows_succeeded == 4
    assert repository.resume_job(shard.job_id).state == JobState.IN_PROGRESS
    assert claimed(repository, released).shard.epoch == 2
    repository.check_integrity()


def test_a_shard_that_ends_during_a_pause_counts_and_the_job_is_published_once_resumed(repository: Repository) -> None:
    shard = running_shard(repository)
    repository.pause_job(shard.job_id)

    finish(repository, shard)

    assert repository.get_job(shard.job_id).state == JobState.PAUSED
    assert repository.advance_jobs() == []
    repository.resume_job(shard.job_id)
    assert [job.state for job in repository.advance_jobs()] == [JobState.FINALIZING]


def test_a_lease_that_ends_during_a_pause_leaves_its_shard_to_the_time_after(repository: Repository) -> None:
    shard = running_shard(repository, lease=OVER)
    repository.pause_job(shard.job_id)

    assert repository.claim_shard(shard.id, "gpu1@a", LEASE) is None
    [expired] = repository.expire_leases(5)

    assert (expired.state, expired.crashes) == (ShardState.READY, 1)
    repository.check_integrity()


def test_a_paused_job_can_be_cancelled(repository: Repository) -> None:
    job = queued_job(repository)
    repository.pause_job(job.id)

    assert repository.request_cancel(job.id).state == JobState.CANCELLING

    with pytest.raises(JobConflict, match="is cancelling; only a paused job can be resumed"):
        repository.resume_job(job.id)
    repository.check_integrity()


def test_only_a_planned_job_that_is_open_can_be_paused_and_resuming_twice_is_harmless(repository: Repository) -> None:
    unplanned, ended = repository.create_job(new_job()), repository.create_job(new_job())
    repository.fail_job(ended.id, None, "x")
    job = queued_job(repository)

    for other in (unplanned, ended):
        with pytest.raises(JobConflict, match=f"job {other.id} is .*; only a job that is queued or in progress"):
            repository.pause_job(other.id)
    with pytest.raises(NoSuchJob):
        repository.pause_job(JobId(4711))
    assert repository.resume_job(job.id).state == JobState.QUEUED


def test_a_cancel_at_once_is_told_apart_and_may_follow_a_patient_one(repository: Repository) -> None:
    shard = running_shard(repository)
    held = [(shard.id, shard.epoch)]

    repository.request_cancel(shard.job_id)
    patient = repository.heartbeat("gpu0@a", held, LEASE)
    repository.request_cancel(shard.job_id, at_once=True)
    impatient = repository.heartbeat("gpu0@a", held, LEASE)

    assert (patient.cancelled, patient.aborted) == ({shard.id}, set())
    assert (impatient.cancelled, impatient.aborted) == ({shard.id}, {shard.id})
    repository.check_integrity()
