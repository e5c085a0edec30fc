"""What there is to be seen of a published run, from one pass over its rows in bounded memory."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from storage.parquet.sealed import read_sealed
from storage.parquet.sorting import ExternalSorter, repeats
from storage.states import RowStatus

COLUMNS = ("status", "finish_reason", "completion_tokens", "output_text")
HASH = pa.schema([pa.field("hash", pa.binary(), nullable=False)])
HASH_MEMORY = 32 << 20  # bytes, for sorting; the rest spills to disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Counts of one run. All but `rows` are of its succeeded rows; `repeated`: their text is that of an earlier row;
    None: nobody asked."""

    rows: int = 0
    succeeded: int = 0
    tokens: int = 0
    characters: int = 0
    cut: int = 0
    repeated: int | None = None


def observe(files: Sequence[Path], *, count_repeats: bool) -> Observed:
    """Read the data parts of a run once. Raises FileDamaged."""
    rows = succeeded = tokens = characters = cut = 0
    with ExitStack() as stack:
        sorter = None
        if count_repeats:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nightmill-")))
            sorter = stack.enter_context(ExternalSorter(HASH, ["hash"], scratch, memory_bytes=HASH_MEMORY))
        for batch in _batches(files):
            rows += batch.num_rows
            done = batch.filter(pc.equal(batch["status"].cast(pa.string()), RowStatus.SUCCEEDED.value))
            succeeded += done.num_rows
            tokens += _sum(done["completion_tokens"])
            characters += _sum(pc.utf8_length(done["output_text"]))
            cut += _sum(pc.equal(done["finish_reason"], "length"))
            if sorter is not None:
                sorter.add(pa.RecordBatch.from_arrays([hashes(done["output_text"])], schema=HASH))
        repeated = None if sorter is None else sum(int(mask.sum()) for _, mask in repeats(sorter.sorted(), ["hash"]))
    return Observed(rows=rows, succeeded=succeeded, tokens=tokens, characters=characters, cut=cut, repeated=repeated)


def hashes(texts: pa.Array) -> pa.Array:
    """16 bytes for each text, equal for equal texts. A missing text is an empty one."""
    return pa.array([hash_text(text or "") for text in texts.to_pylist()], pa.binary())


def hash_text(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _batches(files: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for file in files:
        yield from read_sealed(file, columns=COLUMNS)


def _sum(column: pa.Array) -> int:
    return int(pc.sum(column).as_py() or 0)
