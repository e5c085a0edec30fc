"""What an attempt writes: segments of finished rows as they come, then the shard's own file, sorted and complete."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from storage import failpoints, layout
from storage.durable import inside
from storage.parquet.rows import ResultRow, SealedFile
from storage.parquet.schema import DATA_FIELDS, KEY, METRIC_FIELDS, PASS, complete, decode, encode_status, result_schema
from storage.parquet.sealed import SealedWriter, open_sealed, read_sealed
from storage.parquet.sorting import ExternalSorter, drop_repeats

ROW_GROUP_ROWS = 4096


class SegmentWriter:
    """Collects the finished rows of one attempt; each `seal` makes the pending ones durable as the next segment."""

    def __init__(self, out: Path, shard_idx: int, epoch: int, passed: pa.Schema, work: str = layout.INPROGRESS) -> None:
        self._out = out
        self._work = work
        self._shard_idx = shard_idx
        self._epoch = epoch
        self._schema = result_schema(passed)
        self._passed = passed
        self._rows: list[ResultRow] = []
        self._next_seq = 0

    @property
    def pending(self) -> int:
        """Rows that would be lost with this process."""
        return len(self._rows)

    def append(self, rows: Sequence[ResultRow]) -> None:
        self._rows.extend(rows)

    def seal(self) -> SealedFile | None:
        """Write the pending rows as one durable file; None if there are none. They stay pending if that fails."""
        if not self._rows:
            return None
        key = layout.segment(self._shard_idx, self._epoch, self._next_seq, self._work)
        with SealedWriter(inside(self._out, key), self._schema, statistics=False) as file:
            file.write(self._table())
            failpoints.reach("segment.before_fsync")
            sha256 = file.seal()
        failpoints.reach("segment.after_fsync")
        counts = Counter(row.status for row in self._rows)
        sealed = _sealed_file(key, sha256, counts)
        self._rows = []
        self._next_seq += 1
        return sealed

    def _table(self) -> pa.Table:
        passed = [_column([row.passed[field.name] for row in self._rows], field.type) for field in self._passed]
        own = [
            pa.array([getattr(row, field.name) for row in self._rows], type=decode(field).type)
            for field in (*DATA_FIELDS, *METRIC_FIELDS)
        ]
        plain = pa.schema([decode(field) for field in self._schema])
        return encode_status(pa.Table.from_arrays([*passed, *own], schema=plain))


def segment_keys(out: Path, keys: Sequence[str]) -> set[tuple[int, int]]:
    """The (row_index, sample_index) of all rows in these segments. Raises FileDamaged."""
    found: set[tuple[int, int]] = set()
    for key in keys:
        for batch in read_sealed(inside(out, key), columns=KEY):
            found.update(zip(*(batch[name].to_pylist() for name in KEY), strict=True))
    return found


def write_shard(out: Path, shard_idx: int, epoch: int, segment_keys: Sequence[str]) -> SealedFile:
    """Merge segments into the shard's file for this epoch, by key; the first of rows with equal keys stays.

    Raises FileDamaged when a segment is missing or damaged.
    """
    assert segment_keys, f"shard {shard_idx} has no finished row"
    with open_sealed(inside(out, segment_keys[0])) as first:
        schema = result_fields(first.schema_arrow)
    plain = pa.schema([decode(field) for field in schema])
    work = layout.work_of(segment_keys[0])
    key = layout.shard_file(shard_idx, epoch, work)
    counts: Counter[str] = Counter()
    with (
        ExternalSorter(plain, KEY, out / work) as sorter,
        SealedWriter(inside(out, key), schema, statistics=False) as file,
    ):
        for segment in segment_keys:
            for batch in read_sealed(inside(out, segment)):
                sorter.add(complete(batch, plain))
        for table in _row_groups(drop_repeats(sorter.sorted(), KEY)):
            counts.update(table["status"].to_pylist())
            file.write(encode_status(table))
        failpoints.reach("commit.before_fsync")
        sha256 = file.seal()
    failpoints.reach("commit.after_fsync")
    return _sealed_file(key, sha256, counts)


def result_fields(schema: pa.Schema) -> pa.Schema:
    """The declared schema of a file of results, whose index types Parquet does not keep."""
    passed = [field.with_name(field.name.removeprefix(PASS)) for field in schema if field.name.startswith(PASS)]
    return result_schema(pa.schema(passed))


def _row_groups(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(rows.num_rows for rows in waiting) >= ROW_GROUP_ROWS:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Python values or Arrow scalars as one array."""
    if not any(isinstance(value, pa.Scalar) for value in values):
        return pa.array(values, type=kind)
    # pa.array does not take every scalar: none that is null inside a list, none of a null type.
    ones = [pa.repeat(value, 1) if value is not None and value.is_valid else pa.nulls(1, kind) for value in values]
    return pa.concat_arrays(ones)


def _sealed_file(key: str, sha256: str, counts: Counter[str]) -> SealedFile:
    return SealedFile(
        key=key,
        sha256=sha256,
        rows=counts.total(),
        succeeded=counts["succeeded"],
        errored=counts["errored"],
        expired=counts["expired"],
        canceled=counts["canceled"],
    )
