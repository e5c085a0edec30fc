"""`--only-new`: leave out the rows that the current runs of a data set have generated.

A row is known by its id, or, in an input without ids, by its content. Memory is 16 bytes for each row that the data
set has, and some for each new one.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.columns import Columns
from jobs.inputrows import READ_ROWS, content_ids
from jobs.planner import Int64s
from storage.dataset.current import read_current
from storage.dataset.reading import current_files
from storage.errors import NoSuchDataset
from storage.parquet.reader import InputFiles
from storage.parquet.sealed import read_sealed
from storage.states import RowStatus

Keys = npt.NDArray[np.bytes_]
"""16 bytes each, compared as a whole: numpy pads with zeros what ends in zeros, so they count like any other byte."""

Progress = Callable[[str, int, int], None]


def known_keys(dataset: Path, made_again: str | None = None) -> Keys:
    """Of every row with a succeeded sample in a current run, sorted; none before the first run. The label `made_again`
    does not count: its current run will be replaced, and what only that one has would be lost. Raises FileDamaged."""
    try:
        current = read_current(dataset)
    except NoSuchDataset:
        return _keys([])
    found = [_keys([])]
    for file in current_files(dataset, current):
        if file.label == made_again:
            continue
        keys = [_keys([])]
        for batch in read_sealed(file.path, columns=["custom_id", "status"]):
            done = batch.filter(pc.equal(batch["status"].cast(pa.string()), RowStatus.SUCCEEDED.value))
            keys.append(_keys(done["custom_id"].to_pylist()))
        found.append(np.unique(np.concatenate(keys)))
    return np.unique(np.concatenate(found))


def choose_new(inputs: InputFiles, columns: Columns, known: Keys, *, limit: int | None, progress: Progress) -> Int64s:
    """The places in the input, ascending, of the first `limit` rows that are not known. Of rows with the same content
    and no id only the first is new. Raises InputInvalid."""
    wanted = dict.fromkeys((columns.source, *columns.overrides, *([columns.id] if columns.id else [])))
    keys, places, row = [_keys([])], [np.empty(0, np.int64)], 0
    unnamed = [np.empty(0, np.bool_)]
    for batch in inputs.batches(READ_ROWS, list(wanted)):
        ids, is_content = _ids(batch, columns)
        own = _keys(ids.to_pylist())
        new = ~_among(own, known)
        keys.append(own[new])
        places.append(row + np.flatnonzero(new))
        unnamed.append(is_content[new])
        row += batch.num_rows
        progress("compare", row, inputs.num_rows)
    every, at, by_content = np.concatenate(keys), np.concatenate(places), np.concatenate(unnamed)
    is_first = np.zeros(len(every), dtype=np.bool_)
    is_first[np.unique(every, return_index=True)[1]] = True
    chosen = at[is_first | ~by_content]  # ids that come twice are refused when the plan is made
    return chosen if limit is None else chosen[:limit]


def _ids(batch: pa.RecordBatch, columns: Columns) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """What each row will be called, as `RowEncoder` does it, and whether that follows from its content."""
    if columns.id is None:
        return content_ids(batch, columns), np.ones(batch.num_rows, dtype=np.bool_)
    given = batch[columns.id].cast(pa.string())
    if not given.null_count:
        return given, np.zeros(batch.num_rows, dtype=np.bool_)
    return pc.coalesce(given, content_ids(batch, columns)), given.is_null().to_numpy(zero_copy_only=False)


def _keys(ids: list[str]) -> Keys:
    return np.frombuffer(b"".join(blake2b(each.encode(), digest_size=16).digest() for each in ids), dtype="S16")


def _among(keys: Keys, known: Keys) -> npt.NDArray[np.bool_]:
    """Which of the keys are known; `known` is sorted."""
    if not len(known):
        return np.zeros(len(keys), dtype=np.bool_)
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.asarray(known[at] == keys)
