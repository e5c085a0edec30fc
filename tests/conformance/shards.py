"""Laws of shards, leases and workers that hold on every database."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from storage.errors import Fenced
from storage.records import ModelRef, RunStats, WorkerRecord
from storage.repository import Repository
from storage.states import JobState, ShardState
from tests.conformance.samples import (
    LEASE,
    MANY,
    NO_SHARD,
    OVER,
    claimed,
    commit,
    finish,
    new_job,
    queued_job,
    running_shard,
    shard_now,
)

MODEL_B = ModelRef(source="org/other", revision="v2", dtype="bfloat16", key="model-b")


def test_dispatch_fills_the_window_of_each_model_oldest_job_first(repository: Repository) -> None:
    first = queued_job(repository, num_shards=2)
    queued_job(repository, num_shards=3)
    other = queued_job(repository, num_shards=5, model=MODEL_B)

    hints = repository.dispatch(None, 3, LEASE)

    assert Counter(hint.model_key for hint in hints) == {"model-a": 3, "model-b": 3}
    assert [hint.shard_id for hint in hints[:2]] == [shard.id for shard in repository.shards(first.id)]
    assert hints[-1].job_id == other.id
    assert hints[-1].model_source == "org/other"
    assert {hint.dispatch_seq for hint in hints} == {1}
    assert repository.dispatch(None, 3, LEASE) == []  # the windows are full
    assert len(repository.dispatch("model-b", 4, LEASE)) == 1


def test_a_stale_hint_is_given_again_under_a_new_number(repository: Repository) -> None:
    queued_job(repository, num_shards=1)
    [hint] = repository.dispatch(None, 8, LEASE)

    assert repository.dispatch(None, 8, LEASE) == []
    [again] = repository.dispatch(None, 8, OVER)

    assert (again.shard_id, again.dispatch_seq) == (hint.shard_id, hint.dispatch_seq + 1)


def test_a_job_that_is_not_planned_or_has_ended_is_not_dispatched(repository: Repository) -> None:
    repository.create_job(new_job())
    repository.request_cancel(queued_job(repository).id)

    assert repository.dispatch(None, 8, LEASE) == []


def test_a_claim_starts_an_attempt_and_the_job(repository: Repository) -> None:
    job = queued_job(repository)
    [hint, _] = repository.dispatch(None, 8, LEASE)

    claim = repository.claim_shard(hint.shard_id, "gpu0@a", LEASE)

    assert claim is not None
    assert (claim.shard.state, claim.shard.epoch, claim.shard.attempts) == (ShardState.RUNNING, 1, 1)
    assert (claim.shard.lease_owner, claim.job.state) == ("gpu0@a", JobState.IN_PROGRESS)
    assert claim.job.id == job.id
    assert claim.job.started_at is not None
    repository.check_integrity()


def test_a_second_hint_for_the_same_shard_is_dropped(repository: Repository) -> None:
    shard = running_shard(repository)

    assert repository.claim_shard(shard.id, "gpu1@a", LEASE) is None
    finish(repository, shard)
    assert repository.claim_shard(shard.id, "gpu1@a", LEASE) is None


def test_a_forged_hint_is_dropped(repository: Repository) -> None:
    assert repository.claim_shard(NO_SHARD, "gpu0@a", LEASE) is None
    with pytest.raises(Fenced, match="no shard"):
        repository.commit_shard(NO_SHARD, 1, "x", "x", 1, gauges=RunStats())


def test_a_claim_that_takes_an_expired_lease_counts_the_crash(repository: Repository) -> None:
    lost = running_shard(repository, lease=OVER)

    claim = claimed(repository, lost, owner="gpu1@a")

    assert (claim.shard.epoch, claim.shard.crashes, claim.shard.lease_owner) == (2, 1, "gpu1@a")
    with pytest.raises(Fenced, match="is running under epoch 2; epoch 1 may not commit"):
        commit(repository, lost)
    repository.check_integrity()


def test_a_claim_never_takes_an_expired_lease_whose_crash_makes_the_shard_suspected(repository: Repository) -> None:
    lost = running_shard(repository, lease=OVER)
    again = claimed(repository, lost, owner="gpu1@a", lease=OVER).shard

    assert repository.claim_shard(again.id, "gpu2@a", LEASE) is None
    assert repository.claim_shard(again.id, "gpu2@a", LEASE, alone=True) is None
    assert [shard.crashes for shard in repository.expire_leases(MANY)] == [2]


def test_a_heartbeat_under_an_older_epoch_holds_nothing_although_the_worker_has_the_same_name(
    repository: Repository,
) -> None:
    earlier = running_shard(repository, lease=OVER)
    again = claimed(repository, earlier).shard
    assert (again.lease_owner, again.epoch) == (earlier.lease_owner, 2)

    late = repository.heartbeat("gpu0@a", [(earlier.id, 1)], LEASE)

    assert late.held == frozenset()
    assert repository.heartbeat("gpu0@a", [(again.id, 2)], LEASE).held == {again.id}


def test_a_heartbeat_tells_what_is_still_held(repository: Repository) -> None:
    job = queued_job(repository, num_shards=3)
    mine, stolen, done = (claimed(repository, shard, lease=OVER).shard for shard in repository.shards(job.id))
    claimed(repository, stolen, owner="gpu1@a")
    finish(repository, done)

    beat = repository.heartbeat("gpu0@a", [(shard.id, shard.epoch) for shard in (mine, stolen, done)], LEASE)

    assert beat.held == {mine.id}
    assert beat.cancelled == frozenset()
    assert repository.expire_leases(MANY) == []  # the expired lease is good again
    assert repository.heartbeat("gpu0@a", [], LEASE).held == frozenset()
    assert repository.heartbeat("gpu9@z", [(mine.id, mine.epoch)], LEASE).held == frozenset()


def test_a_preemption_is_not_a_crash(repository: Repository) -> None:
    shard = running_shard(repository, max_shard_attempts=1)

    repository.release_shard(shard.id, shard.epoch, reason="drain", preempted=True, wasted_tokens=123)

    released = shard_now(repository, shard)
    assert (released.state, released.crashes, released.preemptions) == (ShardState.READY, 0, 1)
    assert released.epoch == 1
    assert repository.job_stats(shard.job_id).wasted_tokens == 123
    assert claimed(repository, shard).shard.epoch == 2
    repository.check_integrity()


def test_a_release_can_keep_its_shard_back_for_a_while(repository: Repository) -> None:
    shard = running_shard(repository)

    repository.release_shard(shard.id, 1, reason="disk full", preempted=True, delay_seconds=LEASE)

    assert repository.dispatch(None, 8, LEASE) == []
    assert repository.claim_shard(shard.id, "gpu0@a", LEASE) is None


def test_a_failed_attempt_counts_and_the_last_one_gives_the_shard_up(repository: Repository) -> None:
    shard = running_shard(repository, max_shard_attempts=2)

    repository.release_shard(shard.id, 1, reason="KeyError: 'x'", preempted=False)
    assert shard_now(repository, shard).state == ShardState.READY
    claimed(repository, shard)
    repository.release_shard(shard.id, 2, reason="KeyError: 'x'", preempted=False)

    dead = shard_now(repository, shard)
    assert (dead.state, dead.failures, dead.crashes, dead.error) == (ShardState.DEAD, 2, 0, "KeyError: 'x'")
    assert repository.dead_rows(shard.job_id) == [(0, 10, "internal")]
    assert repository.get_job(shard.job_id).rows_errored == 10
    repository.check_integrity()


def test_a_release_whose_answer_was_lost_can_be_repeated(repository: Repository) -> None:
    shard = running_shard(repository)

    for _ in range(2):
        repository.release_shard(shard.id, 1, reason="drain", preempted=True, wasted_tokens=5)

    assert shard_now(repository, shard).preemptions == 1
    assert repository.job_stats(shard.job_id).wasted_tokens == 5


def test_only_the_holder_may_release(repository: Repository) -> None:
    lost = running_shard(repository, lease=OVER)
    claimed(repository, lost, owner="gpu1@a")

    with pytest.raises(Fenced, match="epoch 1 may not release"):
        repository.release_shard(lost.id, 1, reason="drain", preempted=True)


def test_an_expired_lease_is_a_crash_and_the_shard_is_ready_again(repository: Repository) -> None:
    lost = running_shard(repository, lease=OVER)

    [expired] = repository.expire_leases(MANY)

    assert (expired.id, expired.state, expired.crashes) == (lost.id, ShardState.READY, 1)
    assert expired.error == "worker gpu0@a was lost in attempt 1"
    assert repository.expire_leases(MANY) == []
    assert [hint.shard_id for hint in repository.dispatch(None, 8, LEASE)] == [lost.id]
    with pytest.raises(Fenced):
        commit(repository, lost)
    repository.check_integrity()


def test_a_live_lease_does_not_expire(repository: Repository) -> None:
    running_shard(repository)

    assert repository.expire_leases(MANY) == []


def test_expired_shards_of_a_cancelled_job_do_not_run_again(repository: Repository) -> None:
    shard = running_shard(repository, lease=OVER)
    repository.request_cancel(shard.job_id)

    [expired] = repository.expire_leases(MANY)

    assert expired.state == ShardState.CANCELLED
    assert [job.id for job in repository.advance_jobs()] == [shard.job_id]


def test_workers_are_known_by_their_last_boot(repository: Repository) -> None:
    old = WorkerRecord(
        id="gpu0@a",
        boot_id="boot-1",
        model_key="model-a",
        model_source="org/model",
        device="GPU-1",
        state="starting",
        heartbeat_age=0.0,
    )
    repository.register_worker(old)
    repository.beat_worker("gpu0@a", "boot-1", "ready")

    [found] = repository.workers(max_age_seconds=30)
    assert (found.id, found.state, found.device) == ("gpu0@a", "ready", "GPU-1")
    assert 0 <= found.heartbeat_age < 5
    assert repository.workers(max_age_seconds=OVER) == []

    repository.register_worker(replace(old, boot_id="boot-2"))
    with pytest.raises(Fenced, match="another process"):
        repository.beat_worker("gpu0@a", "boot-1", "ready")
    assert [worker.boot_id for worker in repository.workers()] == ["boot-2"]


def test_waiting_models_put_the_oldest_waiting_job_first(repository: Repository) -> None:
    first = queued_job(repository, num_shards=2)
    queued_job(repository, num_shards=3, model=MODEL_B)
    queued_job(repository, num_shards=4)

    assert [(model.key, waiting) for model, waiting in repository.waiting_models()] == [("model-a", 6), ("model-b", 3)]
    for shard in repository.shards(first.id):
        claimed(repository, shard)
    assert repository.waiting_models()[0][0] == MODEL_B
    repository.request_cancel(first.id)
    assert [(model.key, waiting) for model, waiting in repository.waiting_models()] == [("model-b", 3), ("model-a", 4)]


def test_a_claim_whose_answer_was_lost_is_given_again_and_counts_once(repository: Repository) -> None:
    job = queued_job(repository, num_shards=1)
    shard = repository.shards(job.id)[0]

    claims = [repository.claim_shard(shard.id, "gpu0@a", lease, claim_id="one") for lease in (OVER, LEASE)]

    assert [claim.shard.epoch for claim in claims if claim] == [1, 1]
    assert repository.expire_leases(MANY) == []  # the second answer has renewed it
    assert repository.claim_shard(shard.id, "gpu0@a", LEASE, claim_id="two") is None
    assert (shard_now(repository, shard).attempts, shard_now(repository, shard).crashes) == (1, 0)
    repository.check_integrity()


def test_a_claim_that_was_taken_over_meanwhile_is_not_given_again(repository: Repository) -> None:
    job = queued_job(repository, num_shards=1)
    shard = repository.shards(job.id)[0]
    repository.claim_shard(shard.id, "gpu0@a", OVER, claim_id="one")
    assert repository.claim_shard(shard.id, "gpu1@a", LEASE, claim_id="two") is not None

    assert repository.claim_shard(shard.id, "gpu0@a", LEASE, claim_id="one") is None

    assert (shard_now(repository, shard).lease_owner, shard_now(repository, shard).crashes) == ("gpu1@a", 1)
