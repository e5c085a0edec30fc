"""The published rows of a job, read through its manifest, or of a data set, read through `current.json`: a file that
is not listed there does not exist."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from storage import layout
from storage.dataset.current import read_current
from storage.dataset.names import LABEL_COLUMN
from storage.dataset.reading import CurrentFile, current_files
from storage.errors import FileDamaged, NoSuchJob
from storage.parquet.generations import listed_file
from storage.records import Job
from storage.states import RowStatus

BATCH_ROWS = 1024
COLUMNS = ("row_index", "custom_id", "status", "finish_reason", "completion_tokens", "output_text")
ERROR_COLUMNS = ("row_index", "custom_id", "error_code", "error_message")


@dataclass(frozen=True, slots=True)
class Results:
    """Rows of published parts, in their order: of one job, or of all current runs of a data set with `dt`, the label
    of each, as last column. Reads one batch at a time."""

    files: tuple[CurrentFile, ...]  # of one job: without a label
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
        return cls(tuple(CurrentFile(None, file) for file in files), errors_only, limit)

    @classmethod
    def of_dataset(cls, folder: Path, *, errors_only: bool = False, limit: int | None = None) -> Results:
        """What is current of a data set now. Raises NoSuchDataset, FileDamaged."""
        return cls(tuple(current_files(folder, read_current(folder))), errors_only, limit)

    @property
    def table_columns(self) -> tuple[str, ...]:
        columns = ERROR_COLUMNS if self.errors_only else COLUMNS
        return (LABEL_COLUMN, *columns) if any(file.label for file in self.files) else columns

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each row as a dictionary; each has the columns of all parts."""
        schema = self._schema()
        every = (row for batch in self._batches() for row in _in_schema(batch, schema).to_pylist())
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
        """Write one Parquet file with the columns of all parts; returns how many rows."""
        written, schema = 0, self._schema()
        with pq.ParquetWriter(path, schema) as writer:
            for batch in self._batches():
                wanted = batch if self.limit is None else batch.slice(0, self.limit - written)
                writer.write_batch(_in_schema(wanted, schema))
                written += wanted.num_rows
                if written == self.limit:
                    break
        return written

    def _schema(self) -> pa.Schema:
        """That of the only part, or else of all together: a column may be missing in some runs of a data set."""
        schemas = []
        for file in self.files:
            with _open(file) as part:
                schemas.append(_labelled(part.schema_arrow.empty_table(), file).schema)
        first = schemas[0] if schemas else pa.schema([])
        return first if all(schema.equals(first) for schema in schemas) else pa.unify_schemas(schemas)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for file in self.files:
            with _open(file) as part:
                batches = part.iter_batches(BATCH_ROWS)
                try:
                    yield from (self._select(_labelled(batch, file)) for batch in batches)
                except (OSError, pa.ArrowInvalid) as error:
                    raise _damaged(file, error) from error

    def _select(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not self.errors_only:
            return batch
        failed = [status != RowStatus.SUCCEEDED for status in batch.column("status").to_pylist()]
        return batch.filter(pa.array(failed, pa.bool_()))


def _open(file: CurrentFile) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file.path)
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(file, error) from error


def _damaged(file: CurrentFile, error: Exception) -> FileDamaged:
    return FileDamaged(f"{file.path} is listed in the manifest but cannot be read: {error}")


Rows = TypeVar("Rows", pa.RecordBatch, pa.Table)


def _labelled(rows: Rows, file: CurrentFile) -> Rows:
    if file.label is None:
        return rows
    return rows.append_column(LABEL_COLUMN, pa.array([file.label] * rows.num_rows, pa.string()))


def _in_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    if batch.schema.equals(schema):
        return batch
    has = set(batch.schema.names)
    columns = [
        batch[field.name].cast(field.type) if field.name in has else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def shorten(row: Mapping[str, Any], columns: Sequence[str], width: int = 80) -> dict[str, Any]:
    """The row for a table: long text cut, line breaks shown."""
    return {column: _short(value, width) if isinstance(value := row.get(column), str) else value for column in columns}


def _short(text: str, width: int) -> str:
    line = text.replace("\n", "\\n")
    return line if len(line) <= width else line[: width - 1] + "…"
