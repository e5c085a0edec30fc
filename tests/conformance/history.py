"""Laws of an upgrade of a database that is in use: its history stays and its open jobs go on."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from storage import migrate
from storage.database import Database
from storage.records import JobId, ShardId
from storage.repository import Repository
from storage.states import JobState
from tests.conformance.samples import LEASE, commit, segment, stats_of

FIRST = "0001"
KEY = {"shard_id": 1, "epoch": 1}
HISTORY: dict[str, dict[str, Any]] = {
    "jobs": {
        "id": 1,
        "run_key": "/out",
        "name": "nightly",
        "state": "in_progress",
        "model_source": "org/model",
        "model_dtype": "float32",
        "model_key": "model-a",
        "input_uri": "/in/prompts.parquet",
        "input_fingerprint": "f00d",
        "output_uri": "/out",
        "spec": {"text": "naïve ✓"},
        "spec_hash": "5bec",
        "tags": {"team": "blue"},
        "max_shard_attempts": 5,
        "plan_path": "_inprogress/plan/plan.parquet",
        "plan_sha256": "1a2b",
        "plan_rows": 10,
        "plan_prompt_tokens": 100,
        "plan_predicted_cached_tokens": 60,
        "plan_lower_bound_tokens": 40,
        "rows_total": 10,
        "rows_succeeded": 4,
        "shards_total": 1,
        "created_at": 1.5,
        "queued_at": 2.5,
        "started_at": 3.5,
    },
    "shards": {
        "id": 1,
        "job_id": 1,
        "idx": 0,
        "row_lo": 0,
        "row_hi": 10,
        "num_outputs": 10,
        "state": "running",
        "epoch": 1,
        "attempts": 1,
        "lease_owner": "gpu0@a",
        "lease_until": 1e12,
    },
    "attempts": {
        **KEY,
        "job_id": 1,
        "owner": "gpu0@a",
        "started_at": 3.5,
        "rows": 4,
        "prompt_tokens": 40,
        "cached_tokens": 28,
        "computed_tokens": 12,
        "engine_seconds": 0.25,
    },
    "cache_stats": {
        **KEY,
        "job_id": 1,
        "group_index": 0,
        "kind": "full",
        "layers": 3,
        "block_size": 16,
        "blocks_allocated": 8,
    },
    "shard_segments": {
        **KEY,
        "seq": 0,
        "key": "_inprogress/segments/shard-00000.e1-0000.parquet",
        "sha256": "5e9",
        "rows": 4,
        "succeeded": 4,
        "sealed_at": 4.5,
    },
}
"""A job under way, as the program of the first tables left it: 4 of its 10 rows are sealed."""


def write_history(url: str) -> None:
    tables = sa.MetaData()
    database = Database(url)
    with database.write() as conn:
        tables.reflect(conn)  # as they were, not as they are
        for name, row in HISTORY.items():
            conn.execute(sa.insert(tables.tables[name]).values(row))
    database.close()


def read_history(url: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of the tables of `HISTORY` with the columns that it knows."""
    tables = sa.MetaData()
    database = Database(url)
    with database.read() as conn:
        tables.reflect(conn)
        found = {
            name: conn.execute(sa.select(*(tables.tables[name].c[column] for column in row)))
            for name, row in HISTORY.items()
        }
        rows = {name: [dict(row._mapping) for row in result] for name, result in found.items()}
    database.close()
    return rows


def test_an_old_database_upgrades_with_its_history(empty_url: str) -> None:
    migrate.upgrade(empty_url, FIRST)
    write_history(empty_url)

    migrate.upgrade(empty_url)

    assert read_history(empty_url) == {name: [row] for name, row in HISTORY.items()}
    repository = Repository(empty_url)
    repository.check_schema()
    repository.check_integrity()
    stats = repository.job_stats(JobId(1))
    assert (stats.rows, stats.prompt_tokens, stats.cached_tokens, stats.engine_seconds) == (4, 40, 28, 0.25)
    assert [(group.kind, group.blocks_allocated) for group in stats.groups] == [("full", 8)]
    assert (stats.planned_tokens, stats.limited_by) == (0, ())
    repository.close()


def test_after_an_upgrade_failures_are_no_crashes_and_nothing_counts_as_having_crashed_alone(empty_url: str) -> None:
    migrate.upgrade(empty_url, FIRST)
    write_history(empty_url)
    outcomes = ["failed", "crashed", "crashed", "crashed"]
    old = {"attempts": 5, "epoch": 5, "crashes": 4}
    database = Database(empty_url)
    with database.write() as conn:
        tables = sa.MetaData()
        tables.reflect(conn)
        conn.execute(sa.update(tables.tables["shards"]).values(old))
        for epoch, outcome in enumerate(outcomes, start=2):
            row = {"shard_id": 1, "job_id": 1, "owner": "gpu0@a", "started_at": 3.5, "epoch": epoch, "outcome": outcome}
            conn.execute(sa.insert(tables.tables["attempts"]).values(row))
    database.close()

    migrate.upgrade(empty_url)

    repository = Repository(empty_url)
    [shard] = repository.shards(JobId(1))
    assert (shard.failures, shard.crashes, shard.is_suspect) == (1, 2, True)
    repository.check_integrity()
    repository.close()


def test_a_job_goes_on_after_an_upgrade_and_its_counters_with_it(empty_url: str) -> None:
    migrate.upgrade(empty_url, FIRST)
    write_history(empty_url)
    migrate.upgrade(empty_url)
    repository = Repository(empty_url)

    beat = repository.heartbeat("gpu0@a", [(ShardId(1), 1)], LEASE)
    [shard] = repository.shards(JobId(1))
    repository.seal_segment(shard.id, segment(shard, seq=1, succeeded=6), stats_of(6))
    commit(repository, shard)

    assert beat.held == {1}
    stats = repository.job_stats(JobId(1))
    assert (stats.rows, stats.prompt_tokens, stats.planned_tokens) == (10, 100, 54)
    assert stats.limited_by == (("last token", 6), ("sliding", 12))
    assert repository.get_job(JobId(1)).state is JobState.FINALIZING
    repository.check_integrity()
    repository.close()
