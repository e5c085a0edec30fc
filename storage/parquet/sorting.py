"""External merge sort of record batches: any number of rows in bounded memory, stable, no Python per row.

Runs of sorted rows go to spill files; at most `fan_in` of them are merged at a time. A merge step looks at the last
key in memory of each source: rows up to the smallest of these are complete, whatever follows.

    source 0   | 1 4 4 7 |          smallest last key: 6
    source 1   | 2 3 6 |            out: 1 2 3 4 4 5 6, then source 1 reads on
    source 2   | 5 8 9 |
"""

from __future__ import annotations

import shutil
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Key = tuple[Any, ...]
"""Values of the key columns of one row: int, str or bytes, which Python orders as Arrow does; never null."""


def sort_batch(batch: pa.RecordBatch, keys: Sequence[str]) -> pa.RecordBatch:
    """The rows of `batch` by `keys`, ascending; equal keys keep their order."""
    return batch.take(_order(batch, keys))


def merge_sorted(sources: Sequence[Iterable[pa.RecordBatch]], keys: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """One sorted stream from sorted streams; equal keys come in the order of the sources. Holds a batch of each."""
    heads = [head for head in (_Head(iter(source), keys) for source in sources) if head.fill()]
    while len(heads) > 1:
        first = min(range(len(heads)), key=lambda i: heads[i].last)
        bound = heads[first].last
        # Sources after the first may hold rows equal to the bound, but the first may have more of them to come.
        slices = [head.pop_until(bound, inclusive=i <= first) for i, head in enumerate(heads)]
        slices = [rows for rows in slices if rows.num_rows]
        yield slices[0] if len(slices) == 1 else sort_batch(pa.concat_batches(slices), keys)
        heads = [head for head in heads if head.fill()]
    for head in heads:
        yield from head.pop_rest()


def repeats(batches: Iterable[pa.RecordBatch], keys: Sequence[str]) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """Each batch of a sorted stream with a mask [rows] that is true where a row has the key of the row before it."""
    before: Key | None = None
    for batch in batches:
        if batch.num_rows == 0:
            continue
        mask = np.zeros(batch.num_rows, dtype=bool)
        mask[0] = _key_at(batch, keys, 0) == before
        if batch.num_rows > 1:
            same = [pc.equal(batch[key].slice(1), batch[key].slice(0, batch.num_rows - 1)) for key in keys]
            mask[1:] = np.logical_and.reduce([column.to_numpy(zero_copy_only=False) for column in same])
        before = _key_at(batch, keys, batch.num_rows - 1)
        yield batch, mask


def drop_repeats(batches: Iterable[pa.RecordBatch], keys: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """A sorted stream with one row, the first, of every key."""
    for batch, mask in repeats(batches, keys):
        kept = batch.filter(pa.array(~mask)) if mask.any() else batch
        if kept.num_rows:
            yield kept


def split_at(
    batches: Iterable[pa.RecordBatch], keys: Sequence[str], bounds: Sequence[Key]
) -> Iterator[Iterator[pa.RecordBatch]]:
    """A sorted stream in pieces: a new one begins with the first row that is not below the next bound. A piece without
    rows is left out; each must be used up before the next."""
    for _, piece in groupby(_numbered(batches, keys, bounds), key=itemgetter(0)):
        yield (batch for _, batch in piece)


def _numbered(
    batches: Iterable[pa.RecordBatch], keys: Sequence[str], bounds: Sequence[Key]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    number = 0
    for batch in batches:
        start = 0
        while number < len(bounds):
            rows = range(start, batch.num_rows)
            count = bisect_left(rows, bounds[number], key=partial(_key_at, batch, keys))
            if count:
                yield number, batch.slice(start, count)
            start += count
            if start == batch.num_rows:
                break
            number += 1
        if start < batch.num_rows:
            yield number, batch.slice(start)


class ExternalSorter:
    """Sorts the added rows by `keys` within about `memory_bytes` of Arrow memory; the rest spills below `folder`.

    Use as a context manager: the spill files are gone at its end. Columns must not be dictionary-encoded.
    """

    def __init__(
        self,
        schema: pa.Schema,
        keys: Sequence[str],
        folder: Path,
        *,
        memory_bytes: int = 64 << 20,
        fan_in: int = 64,
    ) -> None:
        assert keys, "nothing to sort by"
        assert fan_in >= 2, "a merge needs two sources"
        self.schema = schema
        self._keys = tuple(keys)
        self._parent = folder
        self._folder: Path | None = None
        self._fan_in = fan_in
        self._run_bytes = max(1, memory_bytes // 3)  # a run, its concatenation and the sorted slices coexist
        self._batch_bytes = max(1, memory_bytes // (8 * fan_in))  # read, decompressed, cut and merged coexist
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._runs: list[Path] = []
        self._num_runs = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take the rows of one batch; they are copied out of it at the latest when the run is spilled."""
        if batch.num_rows == 0:
            return
        self._pending.append(batch)
        self._pending_bytes += batch.nbytes
        if self._pending_bytes >= self._run_bytes:
            self._runs.append(self._write_run(self._sorted_pending()))

    def sorted(self, *, again: bool = False) -> Iterator[pa.RecordBatch]:
        """All added rows in order, once; after `again` they can be asked for once more. Nothing may be added then."""
        if not self._runs and not again:
            yield from self._sorted_pending()
            return
        if self._pending:
            self._runs.append(self._write_run(self._sorted_pending()))
        while len(self._runs) > self._fan_in:
            self._runs = [self._merge_runs(group) for group in _groups(self._runs, self._fan_in)]
        yield from merge_sorted([_read_run(run) for run in self._runs], self._keys)

    def close(self) -> None:
        """Remove the spill files."""
        self._pending = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sorted_pending(self) -> Iterator[pa.RecordBatch]:
        """The pending rows in order, in slices of bounded size; forgets them."""
        if not self._pending:
            return
        rows = pa.concat_batches(self._pending)
        step = max(1, rows.num_rows * self._batch_bytes // max(1, self._pending_bytes))
        self._pending, self._pending_bytes = [], 0
        order = _order(rows, self._keys)
        for start in range(0, rows.num_rows, step):
            yield rows.take(order.slice(start, step))

    def _merge_runs(self, runs: Sequence[Path]) -> Path:
        if len(runs) == 1:
            return runs[0]
        merged = self._write_run(merge_sorted([_read_run(run) for run in runs], self._keys))
        for run in runs:
            run.unlink()
        return merged

    def _write_run(self, batches: Iterable[pa.RecordBatch]) -> Path:
        if self._folder is None:
            self._parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="sort-", dir=self._parent))
        path = self._folder / f"run-{self._num_runs:06d}.arrows"
        self._num_runs += 1
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, self.schema, options=options) as writer:
            for batch in batches:
                step = max(1, batch.num_rows * self._batch_bytes // max(1, batch.nbytes))
                for start in range(0, batch.num_rows, step):
                    writer.write_batch(batch.slice(start, step))
        return path


class _Head:
    """The rows of one sorted source that are in memory and not yet merged."""

    def __init__(self, source: Iterator[pa.RecordBatch], keys: Sequence[str]) -> None:
        self._source = source
        self._keys = keys
        self._batch: pa.RecordBatch | None = None
        self._start = 0
        self.last: Key = ()

    def fill(self) -> bool:
        """Have at least one row in memory; False at the end of the source."""
        if self._batch is not None and self._start < self._batch.num_rows:
            return True
        self._batch = None
        for batch in self._source:
            if batch.num_rows:
                self._batch, self._start = batch, 0
                self.last = _key_at(batch, self._keys, batch.num_rows - 1)
                return True
        return False

    def pop_until(self, bound: Key, *, inclusive: bool) -> pa.RecordBatch:
        """Remove the rows in memory below `bound`, or up to it."""
        batch = self._batch
        assert batch is not None, "the head was not filled"
        find = bisect_right if inclusive else bisect_left
        rows = range(self._start, batch.num_rows)
        count = find(rows, bound, key=lambda row: _key_at(batch, self._keys, row))
        self._start += count
        return batch.slice(self._start - count, count)

    def pop_rest(self) -> Iterator[pa.RecordBatch]:
        """What is in memory, then the rest of the source."""
        while self.fill():
            assert self._batch is not None, "fill found a batch"
            yield self._batch.slice(self._start)
            self._start = self._batch.num_rows


def _order(batch: pa.RecordBatch, keys: Sequence[str]) -> pa.Array:
    return pc.sort_indices(batch, sort_keys=[(key, "ascending") for key in keys])


def _key_at(batch: pa.RecordBatch, keys: Sequence[str], row: int) -> Key:
    return tuple(batch[key][row].as_py() for key in keys)


def _read_run(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as reader:
        yield from reader


def _groups(runs: Sequence[Path], size: int) -> list[Sequence[Path]]:
    """Neighbours stay together, so that merging keeps equal keys in order."""
    return [runs[start : start + size] for start in range(0, len(runs), size)]
