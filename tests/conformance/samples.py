"""Jobs, shards and segments to test a repository with. A lease of `OVER` seconds has run out when it is given."""

from __future__ import annotations

from itertools import count
from typing import Any

from storage.records import (
    Claim,
    GroupStats,
    Job,
    ModelRef,
    NewJob,
    NewShard,
    PlanRecord,
    RunStats,
    Segment,
    Shard,
    ShardId,
)
from storage.repository import Repository

LEASE = 60.0
OVER = -1.0
MANY = 1000  # workers may die of a job
_serial = count()


def new_job(**changes: Any) -> NewJob:
    number = next(_serial)
    values: dict[str, Any] = {
        "run_key": f"run-{number}",
        "name": "nightly",
        "model": ModelRef(source="org/model", revision=None, dtype="float32", key="model-a"),
        "input_uri": "/in/prompts.parquet",
        "input_fingerprint": "f00d",
        "output_uri": f"/out/{number}",
        "spec": {"max_tokens": 16, "nested": {"text": "naïve ✓"}},
        "spec_hash": "5bec",
    }
    return NewJob(**values | changes)


def plan(num_rows: int) -> PlanRecord:
    return PlanRecord(
        path="_inprogress/plan/plan.parquet",
        sha256="1a2b",
        num_rows=num_rows,
        prompt_tokens=100 * num_rows,
        predicted_cached_tokens=60 * num_rows,
        lower_bound_tokens=40 * num_rows,
    )


def queued_job(repository: Repository, *, num_shards: int = 2, rows: int = 10, samples: int = 1, **changes: Any) -> Job:
    job = repository.create_job(new_job(**changes))
    epoch = repository.claim_job(job.id, "submit", LEASE)
    assert epoch == 1
    shards = [
        NewShard(
            idx=idx, row_lo=idx * rows, row_hi=(idx + 1) * rows, cost_tokens=100 * rows, num_outputs=rows * samples
        )
        for idx in range(num_shards)
    ]
    return repository.queue_job(job.id, epoch, plan(num_shards * rows), shards)


def claimed(repository: Repository, shard: Shard, *, owner: str = "gpu0@a", lease: float = LEASE) -> Claim:
    claim = repository.claim_shard(shard.id, owner, lease)
    assert claim is not None
    return claim


def running_shard(repository: Repository, *, lease: float = LEASE, **changes: Any) -> Shard:
    """The only shard of a new job, claimed by gpu0@a under epoch 1."""
    job = queued_job(repository, num_shards=1, **changes)
    return claimed(repository, repository.shards(job.id)[0], lease=lease).shard


def segment(shard: Shard, *, seq: int = 0, **counts: int) -> Segment:
    counts = counts or {"succeeded": 10}
    key = f"_inprogress/segments/shard-{shard.idx:05d}.e{shard.epoch}-{seq:04d}.parquet"
    return Segment(seq=seq, key=key, sha256=f"5e9-{seq}", rows=sum(counts.values()), epoch=shard.epoch, **counts)


def stats_of(rows: int, **changes: Any) -> RunStats:
    """10 prompt tokens a row, 7 of them cached where the plan had expected 9; two layer groups."""
    group = GroupStats(
        index=0,
        kind="full",
        layers=3,
        block_size=16,
        window=None,
        blocks_allocated=2 * rows,
        blocks_shared=rows,
        blocks_peak=4.5,
        blocks_mean=2.0,
    )
    sliding = GroupStats(index=1, kind="sliding", layers=15, block_size=16, window=512, blocks_evicted=rows)
    values: dict[str, Any] = {
        "rows": rows,
        "prompt_tokens": 10 * rows,
        "planned_tokens": 9 * rows,
        "cached_tokens": 7 * rows,
        "computed_tokens": 3 * rows,
        "completion_tokens": 5 * rows,
        "engine_seconds": 0.5 * rows,
        "limited_by": (("last token", rows), ("sliding", 2 * rows)),
        "groups": (group, sliding),
    }
    return RunStats(**values | changes)


def seal_all(repository: Repository, shard: Shard, **counts: int) -> None:
    sealed = segment(shard, **counts)
    repository.seal_segment(shard.id, sealed, stats_of(sealed.rows))


def commit(repository: Repository, shard: Shard, rows: int = 10) -> None:
    repository.commit_shard(shard.id, shard.epoch, out_key(shard), "5ade", rows, RunStats())


def out_key(shard: Shard) -> str:
    return f"_inprogress/shards/shard-{shard.idx:05d}.e{shard.epoch}.parquet"


def shard_now(repository: Repository, shard: Shard) -> Shard:
    return next(found for found in repository.shards(shard.job_id) if found.id == shard.id)


def finish(repository: Repository, shard: Shard, **counts: int) -> None:
    """Seal all rows of a running shard and commit it."""
    sealed = segment(shard, **counts)
    repository.seal_segment(shard.id, sealed, stats_of(sealed.rows))
    commit(repository, shard, sealed.rows)


NO_SHARD = ShardId(10**9)
