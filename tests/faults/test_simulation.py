"""Simulated processes under every fault, ten thousand schedules of them: the laws hold, and a planted bug is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.states import JobState
from tests.faults.simulation import FAULTS, Schedule
from tests.faults.twins import Twins
from tests.faults.world import memory_world, real_world
from tests.memory import MemoryRepository


class Between:
    """Stands between the processes and the repository, and passes everything on."""

    def __init__(self, repository: Any) -> None:
        self.repository = repository

    def __getattr__(self, name: str) -> Any:
        return getattr(self.repository, name)

    def epoch_of(self, shard_id: int) -> int:
        return next(shard.epoch for shard in self.repository._jobs[1].shards if shard.id == shard_id)


class CommitsForAnyEpoch(Between):
    def commit_shard(self, shard_id: int, epoch: int, *rest: Any) -> None:
        self.repository.commit_shard(shard_id, self.epoch_of(shard_id), *rest)


class SealsForAnyEpoch(Between):
    def seal_segment(self, shard_id: int, segment: Any, stats: Any) -> None:
        row = self.repository._shards[shard_id]
        epoch, row.epoch = row.epoch, segment.epoch
        try:
            self.repository.seal_segment(shard_id, segment, stats)
        finally:
            row.epoch = epoch


class ClaimsWhatOthersHold(Between):
    """The lease ends, and with it the epoch should: this one hands out the same epoch again."""

    def claim_shard(self, shard_id: int, owner: str, lease_seconds: float, *, alone: bool) -> Any:
        row = self.repository._shards[shard_id]
        before = row.epoch
        claim = self.repository.claim_shard(shard_id, owner, lease_seconds, alone=alone)
        if claim is not None and before:
            row.outcomes.pop(row.epoch)
            row.epoch, row.attempts = before, before
            row.begun[before] = row.begun.pop(before + 1)
            row.outcomes[before] = None
            return type(claim)(shard=row.record(), job=claim.job)
        return claim


class ForgetsThatAnswersGetLost(Between):
    """A repeated seal counts again."""

    def seal_segment(self, shard_id: int, segment: Any, stats: Any) -> None:
        known = len(self.repository._shards[shard_id].segments)
        self.repository.seal_segment(shard_id, segment, stats)
        if len(self.repository._shards[shard_id].segments) == known:
            self.repository._jobs[1].counts["succeeded"] += segment.rows


class PublishesWithOpenShards(Between):
    def advance_jobs(self) -> Any:
        job = self.repository._jobs[1]
        if any(shard.outcomes for shard in job.shards) and job.state is JobState.IN_PROGRESS:
            job.state = JobState.FINALIZING
        return self.repository.advance_jobs()


def test_ten_thousand_schedules_of_faults_break_no_law() -> None:
    world, faults, ends = memory_world(), Counter[str](), Counter[str]()

    for seed in range(10_000):
        faults += Schedule(world, seed).run()
        ends[world.repository.get_job(world.job_id).state] += 1

    assert faults.keys() == {fault.__name__ for fault in FAULTS}
    assert min(faults.values()) > 1000
    assert ends[JobState.COMPLETED] > 5000
    assert ends[JobState.CANCELLED] > 500
    assert ends[JobState.FAILED] > 100  # workers died too often


def test_a_schedule_is_the_same_every_time() -> None:
    world = memory_world()
    logs = []

    for _ in range(2):
        Schedule(world, 4711).run()
        logs.append(list(world.log))

    assert logs[0] == logs[1]
    assert len(logs[0]) > 5


@pytest.mark.parametrize(
    "bug",
    [
        CommitsForAnyEpoch,
        SealsForAnyEpoch,
        ClaimsWhatOthersHold,
        ForgetsThatAnswersGetLost,
        PublishesWithOpenShards,
    ],
)
def test_a_planted_bug_is_found_within_a_thousand_schedules(bug: Callable[[MemoryRepository], Between]) -> None:
    world = memory_world(bug)

    def search() -> None:
        for seed in range(1000):
            Schedule(world, seed).run()

    with pytest.raises(AssertionError, match=r"^seed \d+: ") as found:
        search()
    print(str(found.value).partition("\n")[0])


def test_the_model_and_the_real_repository_answer_alike(tmp_path: Path) -> None:
    twins: list[Twins] = []

    def beside_the_model(repository: Any) -> Twins:
        twins.append(Twins(repository, MemoryRepository(lambda: world.clock.database)))
        return twins[-1]

    world = real_world(tmp_path, beside_the_model)
    clear, twin = world.clear, twins[0]

    def clear_both() -> None:
        clear()
        twin.model.clear()

    world.clear = clear_both

    for seed in range(100):
        Schedule(world, seed).run()

    assert twin.compared > 7_000
