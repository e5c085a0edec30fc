"""Result rows for the rows of the plan that no attempt has brought to an end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from storage.parquet.plan import read_shard, shard_rows
from storage.parquet.rows import LostRows
from storage.parquet.schema import PASS


def lost_batches(plan: Path, lost: Sequence[LostRows], schema: pa.Schema, num_samples: int) -> Iterator[pa.RecordBatch]:
    """One row per lost row and sample, in `schema`; one shard of the plan is in memory at a time."""
    bounds = list(pairwise(accumulate(shard_rows(plan), initial=0))) if lost else []
    for rows in lost:
        for idx, (lo, hi) in enumerate(bounds):
            if lo < rows.row_hi and rows.row_lo < hi:
                start, stop = max(lo, rows.row_lo) - lo, min(hi, rows.row_hi) - lo
                shard = read_shard(plan, idx).slice(start, stop - start)
                yield _as_results(shard.combine_chunks(), rows, schema, num_samples)


def _as_results(shard: pa.Table, lost: LostRows, schema: pa.Schema, num_samples: int) -> pa.RecordBatch:
    samples = np.array([_num_samples(text, num_samples) for text in shard["sampling"].to_pylist()], dtype=np.int64)
    starts = np.cumsum(samples) - samples
    shard = shard.take(pa.array(np.repeat(np.arange(shard.num_rows), samples)))
    count = shard.num_rows
    known = {
        "sample_index": pa.array(np.arange(count) - np.repeat(starts, samples), pa.int32()),
        "status": pa.repeat(lost.status, count),
        "error_code": pa.repeat(lost.code, count),
        "error_message": pa.repeat(lost.message, count),
    }
    columns = []
    for field in schema:
        if field.name in known:
            column = known[field.name]
        elif field.name in ("custom_id", "row_index", "seed") or field.name.startswith(PASS):
            column = shard[field.name].combine_chunks()
        else:
            column = pa.nulls(count, field.type)
        columns.append(column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _num_samples(overrides: str | None, default: int) -> int:
    """How many samples a row wants; `overrides` is its `sampling` in the plan."""
    if overrides is None:
        return default
    return max(1, int(json.loads(overrides).get("n") or default))
