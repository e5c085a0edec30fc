"""Token ids of many rows at once: flat arrays with lengths, and bytes that sort as the ids do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.planner import Int64s

Int32s = npt.NDArray[np.int32]

TOKEN_BYTES = 4  # of one id in the binary form

INVALID, TOO_LONG = "invalid_request", "context_length"
"""The error codes of rows that never reach the engine."""


@dataclass(slots=True)
class TokenRows:
    """Prompts of one batch: all ids in a row, a length for each row, and what is wrong with the others."""

    values: Int32s
    lengths: Int64s
    errors: dict[int, tuple[str, str]]

    def keep(self, first: Int64s, count: Int64s) -> None:
        """Cut row i to `count[i]` ids from its `first[i]`-th on."""
        starts = np.concatenate(([0], np.cumsum(self.lengths)[:-1]))
        within = np.arange(len(self.values)) - np.repeat(starts, self.lengths)
        first_of, end_of = np.repeat(first, self.lengths), np.repeat(first + count, self.lengths)
        self.values = self.values[(within >= first_of) & (within < end_of)]
        self.lengths = count

    def refuse(self, rows: Mapping[int, tuple[str, str]]) -> None:
        """Record errors and drop the ids of these rows."""
        if rows:
            count = self.lengths.copy()
            count[list(rows)] = 0
            self.keep(np.zeros_like(count), count)
            self.errors.update(rows)


def given_tokens(column: pa.Array, vocab_size: int) -> TokenRows:
    """Token ids from the input, taken as they are; rows with unknown ids are refused."""
    column = column.cast(pa.large_list(pa.int64()))
    lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    flat = pc.fill_null(column.flatten(), -1).to_numpy()
    row_of = np.repeat(np.arange(len(column)), lengths)
    outside = np.unique(row_of[(flat < 0) | (flat >= vocab_size)])
    refused: dict[int, tuple[str, str]] = {
        int(i): (INVALID, f"the prompt has a token id that is null or outside the vocabulary 0 to {vocab_size - 1}")
        for i in outside
    }
    for i in np.flatnonzero(lengths == 0):
        refused[int(i)] = (INVALID, "the prompt is null" if not column[int(i)].is_valid else "the prompt is empty")
    in_range = np.where((flat < 0) | (flat >= vocab_size), 0, flat).astype(np.int32)
    tokens = TokenRows(in_range, lengths, {})
    tokens.refuse(refused)
    return tokens


def tokens_to_binary(values: Int32s, lengths: Int64s) -> pa.Array:
    """Rows of token ids as big-endian bytes."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths * TOKEN_BYTES, out=offsets[1:])
    return pa.Array.from_buffers(
        pa.binary(), len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(values.astype(">u4").tobytes())]
    )


def binary_to_tokens(column: pa.Array) -> tuple[Int32s, Int64s]:
    """The inverse: token ids of all rows, and offsets [rows + 1] into them."""
    _, offset_buffer, data = column.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    raw = np.frombuffer(data or b"", dtype=">u4")[offsets[0] // TOKEN_BYTES : offsets[-1] // TOKEN_BYTES]
    return raw.astype(np.int32), (offsets.astype(np.int64) - int(offsets[0])) // TOKEN_BYTES
