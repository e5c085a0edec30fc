"""Small data sets on disk: runs as their jobs publish them, judged and taken in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage import layout
from storage.dataset.store import DatasetStore
from storage.dataset.verdicts import Verdict
from storage.durable import sha256_bytes
from storage.parquet.manifest import manifest_bytes
from storage.parquet.parts import Part

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Night:
    """A published run: its label, its name, and what its manifest is."""

    label: str
    run: str
    rows: int
    manifest_sha256: str

    def verdict(self, accepted: bool = True, at: datetime = NOON) -> Verdict:
        return Verdict(
            label=self.label,
            run=self.run,
            job=1,
            generation=1,
            manifest_sha256=self.manifest_sha256,
            accepted=accepted,
            reason="all gates passed" if accepted else "min_success_rate: 0.5, wanted at least 0.9",
            gates=(),
            rows=self.rows,
            succeeded=self.rows - self.rows // 5,
            at=at,
        )


def publish_night(
    dataset: Path, label: str, run: str = "1", rows: int = 6, columns: Mapping[str, Any] | None = None
) -> Night:
    """A run of so many rows as a job publishes it, but for its metrics; every fifth row failed. `columns` replaces."""
    out = dataset / "_runs" / label / run
    failed = [index % 5 == 4 for index in range(rows)]
    table = pa.table(
        {
            "prompt": pa.array([f"say {index}" for index in range(rows)], pa.string()),
            "row_index": pa.array(range(rows), pa.int64()),
            "custom_id": pa.array([f"{label}-{index}" for index in range(rows)], pa.string()),
            "sample_index": pa.array([0] * rows, pa.int32()),
            "status": pa.array(["errored" if each else "succeeded" for each in failed]).dictionary_encode(),
            "finish_reason": pa.array([None if each else "stop" for each in failed], pa.string()),
            "completion_tokens": pa.array([None if each else 4 for each in failed], pa.int32()),
            "output_text": pa.array([None if failed[i] else f"{label} {run} {i}" for i in range(rows)], pa.string()),
            **(columns or {}),
        }
    )
    for folder in (layout.DATA, layout.META):
        (out / folder).mkdir(parents=True)
    key = layout.part(layout.DATA, 0)
    pq.write_table(table, out / key)
    part = Part(path=key, rows=rows, bytes=1, sha256="0", row_index_min=0, row_index_max=rows - 1)
    content = manifest_bytes(
        job=f"{label}-{run}",
        generation=1,
        plan_sha256="0",
        counts={"succeeded": rows - sum(failed), "errored": sum(failed), "expired": 0, "canceled": 0},
        errors=[],
        parts={"data": [part], "metrics": [], "errors": []},
    )
    for name in (layout.MANIFEST, layout.manifest_generation(1)):
        (out / name).write_bytes(content)
    return Night(label, run, rows, sha256_bytes(content))


def take_night(
    dataset: Path,
    label: str,
    run: str = "1",
    rows: int = 6,
    at: datetime = NOON,
    accepted: bool = True,
    columns: Mapping[str, Any] | None = None,
) -> Night:
    """Published, judged and, if it is accepted, current."""
    night = publish_night(dataset, label, run, rows, columns)
    store = DatasetStore(dataset)
    verdict = store.judge(night.verdict(accepted, at))
    if accepted:
        store.take(verdict, at)
    return night


def days(number: float) -> timedelta:
    return timedelta(days=number)
