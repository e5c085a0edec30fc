"""The published rows of a job, read through its manifest: a file that the manifest does not list does not exist."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage import layout
from storage.errors import FileDamaged, NoSuchJob
from storage.parquet.generations import listed_file
from storage.records import Job
from storage.states import RowStatus

BATCH_ROWS = 1024
COLUMNS = ("row_index", "custom_id", "status", "finish_reason", "completion_tokens", "output_text")
ERROR_COLUMNS = ("row_index", "custom_id", "error_code", "error_message")


@dataclass(frozen=True, slots=True)
class Results:
    """Rows of one output directory, in the manifest's order. Reads one batch at a time."""

    out: Path
    parts: tuple[str, ...]  # relative to `out`
    errors_only: bool = False
    limit: int | None = None

    @classmethod
    def of(cls, job: Job, *, errors_only: bool = False, limit: int | None = None) -> Results:
        """The results of a job. Raises NoSuchJob when it has published nothing yet, FileDamaged."""
        return cls.at(Path(job.output_uri), f"job {job.id} is {job.state.value}", errors_only=errors_only, limit=limit)

    @classmethod
    def at(cls, out: Path, whose: str, *, errors_only: bool = False, limit: int | None = None) -> Results:
        path = out / layout.MANIFEST
        try:
            manifest = json.loads(path.read_text())
        except FileNotFoundError:
            raise NoSuchJob(f"{whose} and has published no results yet: {path} does not exist") from None
        except (OSError, ValueError) as error:
            raise FileDamaged(f"{whose}, but {path} cannot be read: {error}") from error
        # While a newer generation is being put in place, what this one lists may have been put aside.
        files = [listed_file(out, manifest.get("generation", 1), part["path"]) for part in manifest["parts"]]
        return cls(out, tuple(str(file.relative_to(out)) for file in files), errors_only, limit)

    @property
    def table_columns(self) -> tuple[str, ...]:
        return ERROR_COLUMNS if self.errors_only else COLUMNS

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each row as a dictionary."""
        every = (row for batch in self._batches() for row in batch.to_pylist())
        return itertools.islice(every, self.limit)

    def write_jsonl(self, path: Path) -> int:
        """Write one JSON line each; returns how many."""
        written = 0
        with path.open("w") as file:
            for row in self.rows():
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                written += 1
        return written

    def write_parquet(self, path: Path) -> int:
        """Write one Parquet file with the schema of the parts; returns how many rows."""
        written, writer = 0, None
        try:
            for batch in self._batches():
                wanted = batch if self.limit is None else batch.slice(0, self.limit - written)
                writer = writer or pq.ParquetWriter(path, batch.schema)
                writer.write_batch(wanted)
                written += wanted.num_rows
                if written == self.limit:
                    break
        finally:
            if writer is not None:
                writer.close()
        return written

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for part in self.parts:
            try:
                with pq.ParquetFile(self.out / part) as file:
                    yield from map(self._select, file.iter_batches(BATCH_ROWS))
            except (OSError, pa.ArrowInvalid) as error:
                raise FileDamaged(f"{self.out / part} is listed in the manifest but cannot be read: {error}") from error

    def _select(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not self.errors_only:
            return batch
        failed = [status != RowStatus.SUCCEEDED for status in batch.column("status").to_pylist()]
        return batch.filter(pa.array(failed, pa.bool_()))


def shorten(row: Mapping[str, Any], columns: Sequence[str], width: int = 80) -> dict[str, Any]:
    """The row for a table: long text cut, line breaks shown."""
    return {column: _short(value, width) if isinstance(value := row.get(column), str) else value for column in columns}


def _short(text: str, width: int) -> str:
    line = text.replace("\n", "\\n")
    return line if len(line) <= width else line[: width - 1] + "…"
