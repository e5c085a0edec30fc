"""Simulated processes under every fault, ten thousand schedules of them: the laws hold, and a planted bug is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.states import JobState, ShardState
from tests.faults.simulation import DEATHS_AND_ROT, FAULTS, Schedule
from tests.faults.twins import Twins
from tests.faults.world import ROTTEN, memory_world, real_world
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

    def claim_shard(self, shard_id: int, owner: str, lease_seconds: float, *, alone: bool, claim_id: str) -> Any:
        row = self.repository._shards[shard_id]
        before = row.epoch
        claim = self.repository.claim_shard(shard_id, owner, lease_seconds, alone=alone, claim_id=claim_id)
        if claim is not None and row.epoch > before > 0:
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


class CountsWhatWasLost(Between):
    """Rows whose files were damaged run again, and count twice."""

    def reopen_shards(self, *arguments: Any) -> Any:
        before = dict(self.repository._jobs[1].counts)
        job = self.repository.reopen_shards(*arguments)
        self.repository._jobs[1].counts.update(before)
        return job


class PublishesWithOpenShards(Between):
    def advance_jobs(self) -> Any:
        job = self.repository._jobs[1]
        if any(shard.outcomes for shard in job.shards) and job.state is JobState.IN_PROGRESS:
            job.state = JobState.FINALIZING
        return self.repository.advance_jobs()


def test_ten_thousand_schedules_of_faults_break_no_law() -> None:
    world, faults, ends, reopened = memory_world(), Counter[str](), Counter[str](), 0

    for seed in range(10_000):
        faults += Schedule(world, seed).run()
        ends[world.repository.get_job(world.job_id).state] += 1
        reopened += any(shard.reopenings for shard in world.repository.shards(world.job_id))

    assert faults.keys() == {fault.__name__ for fault in FAULTS}
    assert min(faults.values()) > 1000
    assert ends[JobState.COMPLETED] > 5000
    assert ends[JobState.CANCELLED] > 500
    assert ends[JobState.FAILED] > 100  # workers died too often
    assert reopened > 200


def test_three_thousand_schedules_of_deaths_and_rotten_files_break_no_law() -> None:
    world, ends = memory_world(), Counter[str]()
    world.max_crashes = 50  # so that shards are split before their job is given up

    for seed in range(3000):
        Schedule(world, seed, DEATHS_AND_ROT, rate=0.1).run()
        shards = world.repository.shards(world.job_id)
        ends["reopened"] += any(shard.reopenings for shard in shards)
        ends["part of a split one"] += any(shard.reopenings and shard.state is ShardState.SPLIT for shard in shards)
        ends["hopeless"] += world.repository.get_job(world.job_id).error == ROTTEN

    assert ends["reopened"] > 100
    assert ends["part of a split one"] > 10
    assert ends["hopeless"] > 0


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
        CountsWhatWasLost,
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
