"""From one sorted stream of result rows to published parts: data, metrics and errors side by side.

Where a row group or a part ends depends on the rows alone, never on the batches in which they arrive, so that equal
results give byte-equal files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storage import layout
from storage.parquet.schema import PASS, UNMEASURED, data_schema, encode_status, errors_schema, metrics_schema
from storage.parquet.sealed import SealedWriter
from storage.states import RowStatus

ROW_GROUP_BYTES = 8 << 20
"""Arrow bytes of a row group of a part: what the publisher holds of the output at a time."""

Sizes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One published file. `path` is relative to OUT; [row_index_min, row_index_max] both belong to it."""

    path: str
    rows: int
    bytes: int
    sha256: str
    row_index_min: int
    row_index_max: int


class PartWriter:
    """The parts of one folder of the output, numbered from 0, opened when there is a row for them."""

    def __init__(self, root: Path, folder: str, schema: pa.Schema) -> None:
        self._root = root
        self._folder = folder
        self._schema = schema
        self._file: SealedWriter | None = None
        self._row_index_min = self._row_index_max = 0
        self.parts: list[Part] = []

    def write(self, table: pa.Table, row_index: pa.ChunkedArray) -> None:
        """Append one row group; `row_index` [rows] is ascending."""
        if table.num_rows == 0:
            return
        file = self._file or self._open(row_index[0].as_py())
        self._row_index_max = row_index[-1].as_py()
        file.write(pa.Table.from_arrays(table.columns, schema=self._schema))

    def write_empty(self) -> None:
        """One part without rows, where there is no other: it still says which columns there are."""
        self._open(0)
        self._row_index_max = -1
        self.close_part()

    def _open(self, row_index_min: int) -> SealedWriter:
        self._file = SealedWriter(self._root / layout.part(self._folder, len(self.parts)), self._schema)
        self._row_index_min = row_index_min
        return self._file

    def close_part(self) -> None:
        """End the current part, if there is one."""
        if self._file is None:
            return
        sha256 = self._file.seal()
        part = Part(
            path=layout.part(self._folder, len(self.parts)),
            rows=self._file.num_rows,
            bytes=self._file.path.stat().st_size,
            sha256=sha256,
            row_index_min=self._row_index_min,
            row_index_max=self._row_index_max,
        )
        self._file = None
        self.parts.append(part)

    def discard(self) -> None:
        """Forget the part that is open."""
        if self._file is not None:
            self._file.discard()
            self._file = None


class OutputWriter:
    """Splits merged rows into the three kinds of parts and counts their statuses."""

    def __init__(self, root: Path, passed: pa.Schema, footer: dict[str, str]) -> None:
        self._passed = passed
        self.data = PartWriter(root, layout.DATA, data_schema(passed).with_metadata(footer))
        self.metrics = PartWriter(root, layout.METRICS, metrics_schema())
        self.errors = PartWriter(root, layout.ERRORS, errors_schema(passed))
        self.counts = Counter({status.value: 0 for status in RowStatus})
        self.error_codes: Counter[str] = Counter()
        self.error_examples: dict[str, str] = {}  # the first message of each code
        self._last_failed = -1

    def write(self, rows: pa.Table) -> None:
        """Append merged rows, of the schema of shard files with a plain status, as one row group of each kind."""
        self.counts.update({entry["values"]: entry["counts"] for entry in rows["status"].value_counts().to_pylist()})
        self._count_errors(rows)
        row_index = rows["row_index"]
        self.data.write(encode_status(self._select(rows, data_schema(self._passed))), row_index)
        self.metrics.write(rows.select(metrics_schema().names), row_index)
        failed = self._first_failures(rows)
        self.errors.write(self._select(failed, errors_schema(self._passed)), failed["row_index"])

    def _select(self, rows: pa.Table, schema: pa.Schema) -> pa.Table:
        """The columns of `schema`; a pass-through column still has its prefix, and may have the name of a metric."""
        passed = set(self._passed.names)
        return rows.select([PASS + name if name in passed else name for name in schema.names])

    def close_part(self) -> None:
        for writer in (self.data, self.metrics, self.errors):
            writer.close_part()

    def close(self) -> None:
        """The end of all rows. Who reads a folder of Parquet finds a file in it, also when there were no rows."""
        self.close_part()
        if not self.data.parts:
            self.data.write_empty()
            self.metrics.write_empty()

    def discard(self) -> None:
        for writer in (self.data, self.metrics, self.errors):
            writer.discard()

    def _count_errors(self, rows: pa.Table) -> None:
        errored = rows.filter(pc.equal(rows["status"], RowStatus.ERRORED.value))
        for entry in errored["error_code"].value_counts().to_pylist():
            code = entry["values"]
            self.error_codes[code] += entry["counts"]
            if code not in self.error_examples:
                at = pc.index(errored["error_code"], code).as_py()
                self.error_examples[code] = errored["error_message"][at].as_py() or ""

    def _first_failures(self, rows: pa.Table) -> pa.Table:
        """Errored rows, one per input row however many of its samples failed: ids must stay unique."""
        failed = rows.filter(pc.equal(rows["status"], RowStatus.ERRORED.value))
        if failed.num_rows == 0:
            return failed
        index = failed["row_index"].to_numpy()
        first = np.diff(index, prepend=self._last_failed) != 0
        self._last_failed = int(index[-1])
        return failed.filter(pa.array(first))


def cut_row_groups(batches: Iterable[pa.RecordBatch], limit: int = ROW_GROUP_BYTES) -> Iterator[tuple[pa.Table, int]]:
    """Tables of the same rows with their size in bytes; each ends with the row that reaches `limit`. What is UNMEASURED
    has no size."""
    waiting: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        measured = [name for name in batch.schema.names if name not in UNMEASURED]
        ends = np.cumsum(row_sizes(batch.select(measured)))  # bytes of this batch up to and with each row
        start = 0
        while start < batch.num_rows:
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, limit - size + before)) + 1
            if stop > batch.num_rows:
                waiting.append(batch.slice(start))
                size += int(ends[-1]) - before
                break
            waiting.append(batch.slice(start, stop - start))
            yield pa.Table.from_batches(waiting), size + int(ends[stop - 1]) - before
            waiting, size, start = [], 0, stop
    if waiting:
        yield pa.Table.from_batches(waiting), size


def row_sizes(batch: pa.RecordBatch) -> Sizes:
    """About how many bytes each row takes [rows]; the same for equal rows, wherever they lie in a batch."""
    sizes = np.zeros(batch.num_rows, dtype=np.int64)
    for column in batch.columns:
        sizes += _value_sizes(column)
    return sizes


def _value_sizes(array: pa.Array) -> Sizes:
    kind = array.type
    if pa.types.is_map(kind):
        return _value_sizes(array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = _numbers(pc.list_value_length(array))
        ends = np.cumsum(lengths)
        inner = np.concatenate([[0], np.cumsum(_value_sizes(array.flatten()))])
        return np.asarray(inner[ends] - inner[ends - lengths] + 4, dtype=np.int64)
    if pa.types.is_struct(kind):
        return sum((_value_sizes(field) for field in array.flatten()), np.zeros(len(array), dtype=np.int64))
    if _has_length(kind):
        return _numbers(pc.binary_length(array)) + 4
    if isinstance(kind, pa.BaseExtensionType):
        return _value_sizes(array.storage)
    width = kind.bit_width // 8 if pa.types.is_primitive(kind) or pa.types.is_decimal(kind) else 16
    return np.full(len(array), max(1, width), dtype=np.int64)


def _has_length(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _numbers(array: pa.Array) -> Sizes:
    return np.asarray(pc.fill_null(array, 0).to_numpy(zero_copy_only=False), dtype=np.int64)
