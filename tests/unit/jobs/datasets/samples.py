"""Ended jobs whose outputs are runs of a data set."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from storage.records import Job, JobId, ModelRef
from storage.states import JobState
from tests.unit.storage.dataset.samples import Night


def ended_job(dataset: Path, night: Night, **changes: Any) -> Job:
    """The job that published the night, as SQL has it."""
    moment = datetime(2026, 11, 27, tzinfo=UTC)
    fields: dict[str, Any] = {
        "id": JobId(7),
        "run_key": f"stories:{night.label}:{night.run}",
        "name": "stories",
        "state": JobState.COMPLETED,
        "model": ModelRef(source="org/model", revision=None, dtype="float32", key="k1"),
        "input_uri": "in.parquet",
        "input_fingerprint": "f",
        "output_uri": str(dataset / "_runs" / night.label / night.run),
        "spec": {},
        "spec_hash": "h",
        "plan": None,
        "rows_total": night.rows,
        "rows_succeeded": night.rows - night.rows // 5,
        "rows_errored": night.rows // 5,
        "rows_expired": 0,
        "rows_canceled": 0,
        "shards_total": 1,
        "shards_done": 1,
        "error": None,
        "cancel_requested": False,
        "created_at": moment,
        "started_at": moment,
        "finished_at": moment,
        "manifest_sha256": night.manifest_sha256,
        "published_generation": 1,
    }
    return Job(**{**fields, **changes})
