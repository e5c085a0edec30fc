"""Find ids that come twice among any number of rows: sorted on disk, neighbours compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.columns import Columns
from storage.errors import InputInvalid
from storage.parquet.sorting import ExternalSorter, repeats

NAMED_DUPLICATES = 5
SHOWN_ID = 80  # characters
ID_MEMORY = 16 << 20  # bytes; the rows themselves are sorted at the same time


class UniqueIds:
    """Finds ids that come twice. Ids that we make ourselves are unique; only a column can hold duplicates."""

    def __init__(self, columns: Columns, schema: pa.Schema, scratch: Path) -> None:
        self._column = columns.id
        compared = pa.schema([schema.field("custom_id"), schema.field("row_index")])
        self._sorter = ExternalSorter(compared, ["custom_id"], scratch, memory_bytes=ID_MEMORY)

    def __enter__(self) -> UniqueIds:
        return self

    def __exit__(self, *error: object) -> None:
        self._sorter.close()

    def add(self, batch: pa.RecordBatch) -> None:
        if self._column is not None:
            self._sorter.add(batch.select(["custom_id", "row_index"]))

    def check(self) -> None:
        """Raises InputInvalid (`duplicate_id`) that names the first ids and their rows."""
        found: dict[str, list[int]] = {}
        num_repeats, before = 0, -1
        for batch, again in repeats(self._sorter.sorted(), ["custom_id"]):
            rows = batch["row_index"]
            for i in np.flatnonzero(again):
                custom_id = batch["custom_id"][int(i)].as_py()
                if custom_id not in found and len(found) == NAMED_DUPLICATES:
                    break
                first = rows[int(i) - 1].as_py() if i else before
                found.setdefault(custom_id, [first]).append(rows[int(i)].as_py())
            num_repeats += int(again.sum())
            before = rows[-1].as_py()
        if found:
            named = "; ".join(
                f"{custom_id[:SHOWN_ID]!r} in rows {', '.join(map(str, at[:4]))}" for custom_id, at in found.items()
            )
            raise InputInvalid(
                "duplicate_id",
                f"the id column {self._column!r} has {num_repeats} repeated ids: {named} (rows count from 0); "
                "make them unique, or name another column with --id-column",
            )
