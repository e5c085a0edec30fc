"""The rows of a plan in their order, by an external sort.

| order | rows come |
|---|---|
| longest-branch | by their tokens, but of the branches of the prefix tree that with the longest row first |
| prefix | by their tokens |
| longest | those first that may generate most |
| input | as they are in the input |
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.branches import branch_places
from jobs.intake import TOKENS_KEY
from jobs.options import Order
from jobs.planner import Int64s, shared_lengths
from jobs.tokens import binary_to_tokens
from storage.parquet.sorting import ExternalSorter

DECODE_KEY = "decode_key"
PLACE_KEY = "place"

# Sorting branches takes some 100 bytes for each row. The end of a longer job is a small part of it, in any order.
MOST_ROWS = 2_000_000

Shared = tuple[pa.RecordBatch, Int64s, Int64s]
"""A batch, the lengths of its prompts, and the tokens that each has in common with the row before it."""


class OrderedRows:
    """Rows in plan order, spilled to disk; the same rows by their tokens, for what the cache can save."""

    def __init__(self, schema: pa.Schema, order: Order, scratch: Path, most_rows: int = MOST_ROWS) -> None:
        self._order = order
        self._most_rows = most_rows
        self._scratch = scratch
        self._keyed = schema.append(pa.field(DECODE_KEY, pa.int64()))
        self._placed = schema.append(pa.field(PLACE_KEY, pa.int64()))
        self._num_rows = 0
        self._expected: set[int] = set()  # what rows may generate: two different numbers at most
        self._places: Int64s | None = None
        self._stack = ExitStack()
        keys = {"longest-branch": TOKENS_KEY, "prefix": TOKENS_KEY, "input": "row_index", "longest": DECODE_KEY}
        self._rows = self._sorter(self._keyed, keys[order])
        is_sorted_twice = keys[order] != TOKENS_KEY
        self._by_tokens = self._sorter(pa.schema([schema.field(TOKENS_KEY)]), TOKENS_KEY) if is_sorted_twice else None

    def add(self, batch: pa.RecordBatch) -> None:
        if self._by_tokens is not None:
            self._by_tokens.add(batch.select([TOKENS_KEY]))
        self._num_rows += batch.num_rows
        if batch.num_rows and len(self._expected) < 2:
            self._expected |= set(pc.min_max(batch["decode_tokens"].filter(_runs(batch))).as_py().values()) - {None}
        most_first = pc.negate(batch["decode_tokens"])
        self._rows.add(pa.RecordBatch.from_arrays([*batch.columns, most_first], schema=self._keyed))

    @property
    def is_by_tokens(self) -> bool:
        """Whether plan order is that of the tokens. It is that of branches too, where no row is longer than others."""
        if self._order == "longest-branch":
            return len(self._expected) < 2 or self._num_rows > self._most_rows
        return self._order == "prefix"

    def by_tokens(self) -> Iterator[Shared]:
        """The rows, or their tokens alone. Where plan order is another one, this comes first and is used up."""
        assert not self.is_by_tokens, "rows that come by their tokens are sorted once"
        if self._by_tokens is not None:
            yield from _with_shared(self._by_tokens.sorted())
            return
        all_shared, all_expected = [], []
        for batch, lengths, shared in _with_shared(self._rows.sorted(again=True)):
            all_shared.append(shared)
            all_expected.append(batch["decode_tokens"].to_numpy())
            yield batch, lengths, shared
        self._places = branch_places(np.concatenate(all_shared), np.concatenate(all_expected))

    def sorted(self) -> Iterator[Shared]:
        """The rows in plan order, once."""
        if self._order == "longest-branch" and not self.is_by_tokens:
            return _with_shared(self._by_places())
        return _with_shared(self._rows.sorted())

    def _by_places(self) -> Iterator[pa.RecordBatch]:
        assert self._places is not None, "branches are known when the rows were read by their tokens"
        placed = self._sorter(self._placed, PLACE_KEY)
        begin = 0
        for batch in self._rows.sorted():
            places = pa.array(self._places[begin : begin + batch.num_rows])
            placed.add(pa.RecordBatch.from_arrays([*batch.columns[:-1], places], schema=self._placed))
            begin += batch.num_rows
        yield from placed.sorted()

    def _sorter(self, schema: pa.Schema, key: str) -> ExternalSorter:
        return self._stack.enter_context(ExternalSorter(schema, [key], self._scratch))

    def __enter__(self) -> OrderedRows:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _runs(batch: pa.RecordBatch) -> pa.Array:
    """Which rows have no error: one that does not run has no length."""
    return pc.is_null(batch["error_code"])


def _with_shared(batches: Iterator[pa.RecordBatch]) -> Iterator[Shared]:
    """Over the borders of batches."""
    last = pa.array([b""], pa.binary())
    for batch in batches:
        if batch.num_rows == 0:
            continue
        column = batch[TOKENS_KEY]
        values, offsets = binary_to_tokens(pa.concat_arrays([last, column]))
        yield batch, np.diff(offsets)[1:], shared_lengths(values, offsets)[1:]
        last = column.slice(len(column) - 1)
