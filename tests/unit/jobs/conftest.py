"""Records as the database would give them, for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from storage.records import Job, JobId, ModelRef, Shard, ShardId
from storage.states import JobState, ShardState
from tests.unit.jobs.bench import Bench, make_bench
from tests.unit.jobs.desk import Desk

MakeJob = Callable[..., Job]
MakeShard = Callable[..., Shard]


@pytest.fixture
def make_job() -> MakeJob:
    """A job of 100 rows in progress; keywords replace its fields."""

    def make(**changes: Any) -> Job:
        fields: dict[str, Any] = {
            "id": JobId(7),
            "run_key": "/out",
            "name": "night",
            "state": JobState.IN_PROGRESS,
            "model": ModelRef(source="org/model", revision=None, dtype="float32", key="k1"),
            "input_uri": "in.parquet",
            "input_fingerprint": "f",
            "output_uri": "/out",
            "spec": {},
            "spec_hash": "h",
            "plan": None,
            "rows_total": 100,
            "rows_succeeded": 0,
            "rows_errored": 0,
            "rows_expired": 0,
            "rows_canceled": 0,
            "shards_total": 2,
            "shards_done": 0,
            "error": None,
            "cancel_requested": False,
            "created_at": datetime(2026, 1, 1, tzinfo=UTC),
            "started_at": None,
            "finished_at": None,
        }
        return Job(**{**fields, **changes})

    return make


@pytest.fixture
def make_shard() -> MakeShard:
    """A waiting shard of rows 0 to 50; keywords replace its fields."""

    def make(**changes: Any) -> Shard:
        fields: dict[str, Any] = {
            "id": ShardId(1),
            "job_id": JobId(7),
            "idx": 0,
            "row_lo": 0,
            "row_hi": 50,
            "state": ShardState.READY,
            "epoch": 0,
            "lease_owner": None,
            "attempts": 0,
            "crashes": 0,
            "preemptions": 0,
            "dispatch_seq": 0,
            "out_key": None,
            "out_sha256": None,
            "out_rows": None,
            "error": None,
        }
        return Shard(**{**fields, **changes})

    return make


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with make_bench(tmp_path) as made:
        yield made
