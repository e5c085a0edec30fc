"""From an input to the encoded rows of a job: which of its rows they are, and how they are numbered and named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.columns import Columns
from jobs.intake import RowEncoder
from jobs.planner import Int64s
from storage.parquet.reader import InputFiles

READ_ROWS = 4096


def encoded_rows(
    inputs: InputFiles, columns: Columns, rows: RowEncoder, *, limit: int | None, chosen: Int64s | None
) -> Iterator[pa.RecordBatch]:
    """The rows of the input as `RowEncoder` makes them: the first `limit`, numbered by their place, or those at the
    places `chosen` (ascending), numbered in their order. A row without an id is named by file and row, or by its
    content if rows are chosen: then it has the same name in every input."""
    wanted = dict.fromkeys((columns.source, *columns.passed.names, *columns.overrides))
    if columns.id is not None:
        wanted[columns.id] = None
    ends = np.cumsum([file.num_rows for file in inputs.files])
    row, last = 0, inputs.num_rows if limit is None else min(limit, inputs.num_rows)
    last = last if chosen is None else int(chosen[-1]) + 1 if len(chosen) else 0
    for batch in inputs.batches(READ_ROWS, list(wanted)) if last else ():
        first, row = row, row + batch.num_rows
        if chosen is None:
            batch = batch.slice(0, last - first)
            yield from rows.encode(
                batch, np.arange(first, first + batch.num_rows), _numbered(ends, first, batch.num_rows)
            )
        else:
            lo, hi = np.searchsorted(chosen, [first, row])
            if lo < hi:
                batch = batch.take(pa.array(chosen[lo:hi] - first))
                yield from rows.encode(batch, np.arange(lo, hi), content_ids(batch, columns))
        if row >= last:
            return


def content_ids(batch: pa.RecordBatch, columns: Columns) -> pa.Array:
    """A name for each row that follows from its prompt and its own sampling options, and from nothing else."""
    names = (columns.source, *columns.overrides)
    values = zip(*(batch[name].to_pylist() for name in names), strict=True)
    return pa.array([_content_id(columns, row) for row in values], pa.string())


def _content_id(columns: Columns, row: tuple[Any, ...]) -> str:
    given = {name: _plain(value) for name, value in zip(columns.overrides, row[1:], strict=True) if value is not None}
    text = json.dumps([_plain(row[0]), given], sort_keys=True, ensure_ascii=False, default=str)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    """Without null fields: a field that only other rows use does not make this row another one."""
    if isinstance(value, dict):
        return {name: _plain(field) for name, field in value.items() if field is not None}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _numbered(ends: Int64s, first: int, num_rows: int) -> pa.Array:
    """`00002:17` for rows of one file, the first of which is row `first` of the input."""
    file_index = int(np.searchsorted(ends, first, side="right"))
    in_file = first - (int(ends[file_index - 1]) if file_index else 0)
    numbers = pa.array(np.arange(in_file, in_file + num_rows)).cast(pa.string())
    return pc.binary_join_element_wise(f"{file_index:05d}", numbers, ":")
