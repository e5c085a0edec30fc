"""Result rows for the rows of the plan that no attempt has brought to an end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage.parquet.plan import read_shard, shard_rows
from storage.parquet.rows import LostRows
from storage.parquet.schema import PASS
from storage.states import RowStatus

OWN = ("custom_id", "row_index", "seed")
"""Columns that a plan and a result have in common."""


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
    samples = _num_samples(shard, num_samples)
    starts = np.cumsum(samples) - samples
    shard = shard.take(pa.array(np.repeat(np.arange(shard.num_rows), samples))).combine_chunks()
    count = shard.num_rows
    code, message = pa.scalar(lost.code), pa.scalar(lost.message)
    if lost.status == RowStatus.ERRORED:  # what submit found wrong with a row is the better reason
        message = pc.if_else(pc.is_valid(shard["error_code"]), shard["error_message"], message)
        code = pc.coalesce(shard["error_code"], code)
    known = {
        "sample_index": pa.array(np.arange(count) - np.repeat(starts, samples)),
        "status": pa.scalar(lost.status),
        "error_code": code,
        "error_message": message,
    }
    copied = {name: shard[name] for name in shard.schema.names if name in OWN or name.startswith(PASS)}
    columns = [_column({**copied, **known}.get(field.name), field.type, count) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _column(values: Any, kind: pa.DataType, count: int) -> pa.Array:
    """`count` values of the type: a column, one value for all, or nulls."""
    if values is None:
        return pa.nulls(count, kind)
    if isinstance(values, pa.Scalar):
        return pa.repeat(values, count).cast(kind)
    return (values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values).cast(kind)


def _num_samples(shard: pa.Table, default: int) -> npt.NDArray[np.int64]:
    """How many result rows each row of the plan [rows] ends as: one per sample, one if submit refused it."""
    refused = shard["error_code"].is_valid().to_pylist()
    overrides = shard["sampling"].to_pylist()
    wanted = [default if own is None else int(json.loads(own).get("n") or default) for own in overrides]
    return np.array([1 if no else number for no, number in zip(refused, wanted, strict=True)], dtype=np.int64)
