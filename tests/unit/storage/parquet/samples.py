"""Small jobs on disk: a plan, its shard files and what the publisher is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage import layout
from storage.parquet.plan import PlanWriter
from storage.parquet.publisher import PublishJob
from storage.parquet.rows import ResultRow, SealedFile
from storage.parquet.schema import PASS, plan_schema
from storage.parquet.writer import SegmentWriter, write_shard

PASSED = pa.schema([("prompt", pa.string()), ("tags", pa.list_(pa.string())), ("score", pa.float64())])


@dataclass(frozen=True)
class SampleJob:
    """`order` is the plan's order of row indices; shard k holds `order[k * shard_rows : (k + 1) * shard_rows]`."""

    out: Path
    order: tuple[int, ...]
    shard_rows: int
    plan_sha256: str
    generation: int = 1

    @property
    def shards(self) -> list[tuple[int, ...]]:
        return [self.order[lo : lo + self.shard_rows] for lo in range(0, len(self.order), self.shard_rows)]

    def publish_job(self, **changes: Any) -> PublishJob:
        footer = {"model": "tiny", "model_revision": "1"}
        own = {"generation": self.generation, "plan": layout.plan(self.generation), "plan_sha256": self.plan_sha256}
        return PublishJob(**{"name": "sample", "epoch": 1, "footer": footer, **own, **changes})

    def again(self, indices: Sequence[int], generation: int = 2, shard_rows: int = 3) -> SampleJob:
        """The plan of a generation in which these rows run again."""
        return make_job(self.out, indices, shard_rows, generation)

    def run_shard(self, idx: int, epoch: int = 1, segment_rows: int = 3, **changes: Any) -> SealedFile:
        """Write the file of one shard, its segments in the order in which rows end: backwards."""
        rows = [result_row(index, **changes) for index in reversed(self.shards[idx])]
        segments = write_segments(self.out, idx, epoch, rows, segment_rows, layout.work(self.generation))
        return write_shard(self.out, idx, epoch, [segment.key for segment in segments])

    def run(self, **changes: Any) -> list[SealedFile]:
        return [self.run_shard(idx, **changes) for idx in range(len(self.shards))]


def make_job(out: Path, order: Sequence[int], shard_rows: int, generation: int = 1) -> SampleJob:
    """Freeze a plan whose rows are `passed_values` of their index."""
    schema = plan_schema(PASSED)
    with PlanWriter(out / layout.plan(generation), PASSED) as plan:
        for lo in range(0, len(order), shard_rows):
            rows = [plan_row(index) for index in order[lo : lo + shard_rows]]
            plan.write_shard([pa.RecordBatch.from_pylist(rows, schema=schema)])
        sha256 = plan.close()
    return SampleJob(out, tuple(order), shard_rows, sha256, generation)


def plan_row(index: int) -> dict[str, Any]:
    return {
        "row_index": index,
        "custom_id": f"id-{index}",
        "prompt_token_ids": [index, index + 1],
        "sampling": '{"n": 2}' if index % 10 == 7 else None,
        "seed": index * 3,
        **{PASS + name: value for name, value in passed_values(index).items()},
    }


def passed_values(index: int) -> dict[str, Any]:
    return {
        "prompt": f"Grüße {index}",
        "tags": None if index % 4 == 0 else [f"t{index % 3}", None],
        "score": index / 7,
    }


def result_row(index: int, sample: int = 0, **changes: Any) -> ResultRow:
    """A finished row; every fifth one failed."""
    failed = index % 5 == 4
    values = {
        "custom_id": f"id-{index}",
        "row_index": index,
        "sample_index": sample,
        "status": "errored" if failed else "succeeded",
        "output_text": None if failed else f"answer {index}.{sample} ✓" * (index % 4),
        "finish_reason": None if failed else "stop",
        "prompt_tokens": 2,
        "seed": index * 3,
        "error_code": "context_length" if failed else None,
        "error_message": "too long" if failed else None,
        "limited_by": [{"name": "sliding", "tokens": index}],
        "groups": [{"allocated": index, "shared": 1, "copied": 0, "evicted": 0, "evicted_unused": 0}],
        "logprobs": None if index % 2 else [{"token_id": index, "logprob": -0.5}],
        "passed": passed_values(index),
    }
    return ResultRow(**{**values, **changes})


def write_segments(
    out: Path, idx: int, epoch: int, rows: Sequence[ResultRow], segment_rows: int = 3, work: str = layout.INPROGRESS
) -> list[SealedFile]:
    writer = SegmentWriter(out, idx, epoch, PASSED, work)
    sealed = []
    for lo in range(0, len(rows), segment_rows):
        writer.append(rows[lo : lo + segment_rows])
        segment = writer.seal()
        assert segment is not None
        sealed.append(segment)
    return sealed


def published_files(out: Path) -> dict[str, bytes]:
    """The content of every file of OUT but those in progress, by its path relative to OUT."""
    files = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(layout.INPROGRESS)}
