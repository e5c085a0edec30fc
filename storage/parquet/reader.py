"""The input: one or many Parquet files of one schema, read as a stream in flat memory.

Footers are read first, so that whatever they show is refused before any work; what only the pages show is refused
when it is met. All refusals are InputInvalid and name the file.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from storage import layout
from storage.errors import InputInvalid
from storage.parquet.schema import decode
from storage.parquet.sealed import READ_BUFFER

MAGIC = b"PAR1"
SAMPLE_BYTES = 4096
"""Bytes of every row group that take part in the fingerprint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    path: Path
    num_rows: int
    fingerprint: str  # sha256 over name, size, footer and the first bytes of every row group


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFiles:
    """Files of one schema, in the order in which their rows count. Dictionary columns are read as plain values."""

    files: tuple[InputFile, ...]
    schema: pa.Schema

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)

    @property
    def fingerprint(self) -> str:
        """Equal for equal files in equal order, wherever they are."""
        return hashlib.sha256("".join(file.fingerprint for file in self.files).encode()).hexdigest()

    def batches(self, batch_rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """All rows in order; no batch crosses the end of a file. Raises InputInvalid('truncated') at damage."""
        schema = self.schema if columns is None else pa.schema([self.schema.field(name) for name in columns])
        for file in self.files:
            yield from _read_file(file, schema, batch_rows)


def open_input(paths: Sequence[str]) -> InputFiles:
    """Find and check the files, directories and globs. Raises InputInvalid."""
    found = dict.fromkeys(file for path in paths for file in _find(path))
    if not found:
        raise InputInvalid("missing_file", "no input was named; name a Parquet file, a directory or a glob")
    opened = [_open_file(path) for path in found]
    first, schema = opened[0]
    _check_columns(first.path, schema)
    for file, other in opened[1:]:
        _check_same(first.path, schema, file.path, other)
    files = tuple(file for file, _ in opened)
    if not any(file.num_rows for file in files):
        raise InputInvalid("empty", f"{first.path}{_and_others(len(files))}: there are no rows, so nothing to do")
    return InputFiles(files=files, schema=schema)


def _find(path: str) -> list[Path]:
    if layout.is_remote(path):
        raise InputInvalid("missing_file", f"{path}: object storage is not supported yet; copy the files here first")
    place = Path(path)
    if place.is_file():
        return [_absolute(place)]
    if place.is_dir():
        files = [file for file in place.glob("*.parquet") if not file.name.startswith((".", "_"))]
        if not files:
            raise InputInvalid(
                "missing_file",
                f"{path}: this directory holds no *.parquet file; name the files, or a glob as '{path}/**/*.parquet'",
            )
    else:
        files = [Path(match) for match in glob.glob(path, recursive=True) if Path(match).is_file()]
        if not files:
            wild = "matches no file" if glob.has_magic(path) else "does not exist"
            raise InputInvalid("missing_file", f"{path}: {wild}; check the path, relative to {Path.cwd()}")
    return sorted(_absolute(file) for file in files)


def _absolute(path: Path) -> Path:
    """Links are not followed: a download cache links names in order to contents without names."""
    return Path(os.path.abspath(path))


def _open_file(path: Path) -> tuple[InputFile, pa.Schema]:
    try:
        with path.open("rb") as stream:
            footer = _read_footer(path, stream)
            metadata = pq.ParquetFile(stream, pre_buffer=False)
            fingerprint = _fingerprint(path, stream, footer, metadata.metadata)
            fields = [decode(field).with_nullable(True).remove_metadata() for field in metadata.schema_arrow]
            num_rows = metadata.metadata.num_rows
    except PermissionError as error:
        raise InputInvalid("missing_file", f"{path}: may not be read; check its permissions") from error
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputInvalid("truncated", f"{path}: the footer is damaged ({error}); write the file again") from error
    return InputFile(path=path, num_rows=num_rows, fingerprint=fingerprint), pa.schema(fields)


def _read_footer(path: Path, stream: BinaryIO) -> bytes:
    """The bytes between the last page and the end. Raises InputInvalid when the file is not whole Parquet."""
    size = stream.seek(0, 2)
    stream.seek(0)
    head = stream.read(4)
    stream.seek(max(0, size - 8))
    tail = stream.read(8)
    if head == b"PARE" or tail[4:] == b"PARE":
        raise InputInvalid("not_parquet", f"{path}: encrypted Parquet cannot be read; decrypt it first")
    if head != MAGIC and tail[4:] != MAGIC:
        raise InputInvalid("not_parquet", f"{path}: this is not a Parquet file; convert it, e.g. with pandas or DuckDB")
    length = int.from_bytes(tail[:4], "little")
    if head != MAGIC or tail[4:] != MAGIC or length > size - 12:
        raise InputInvalid(
            "truncated",
            f"{path}: the file is cut off or damaged ({size} bytes, and no whole footer); copy or write it again",
        )
    stream.seek(size - 8 - length)
    return stream.read(length)


def _fingerprint(path: Path, stream: BinaryIO, footer: bytes, metadata: pq.FileMetaData) -> str:
    digest = hashlib.sha256(f"{path.name}\n{stream.seek(0, 2)}\n".encode())
    digest.update(footer)
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if group.num_columns:
            column = group.column(0)
            stream.seek(column.dictionary_page_offset or column.data_page_offset)
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _check_columns(path: Path, schema: pa.Schema) -> None:
    doubled = [name for name, count in Counter(schema.names).items() if count > 1]
    if doubled:
        raise InputInvalid(
            "ambiguous_columns", f"{path}: there are several columns {doubled[0]!r}; give each its own name"
        )


def _check_same(first: Path, schema: pa.Schema, path: Path, other: pa.Schema) -> None:
    if schema.equals(other):
        return
    for name in dict.fromkeys([*schema.names, *other.names]):
        here, there = (_type_of(columns, name) for columns in (schema, other))
        if here != there:
            detail = f"column {name!r} is {there} there and {here} in {first}"
            break
    else:
        detail = f"its columns are in another order than in {first}"
    raise InputInvalid("wrong_type", f"{path}: all files of an input must have one schema, but {detail}")


def _type_of(schema: pa.Schema, name: str) -> str:
    return str(schema.field(name).type) if name in schema.names else "missing"


def _read_file(file: InputFile, schema: pa.Schema, batch_rows: int) -> Iterator[pa.RecordBatch]:
    done = 0
    try:
        with pq.ParquetFile(
            str(file.path), pre_buffer=False, buffer_size=READ_BUFFER, page_checksum_verification=True
        ) as source:
            for batch in source.iter_batches(batch_rows, columns=schema.names, use_threads=False):
                batch.validate(full=True)  # pages without checksums may hold anything, such as invalid UTF-8
                done += batch.num_rows
                yield _as_schema(batch, schema)
    except FileNotFoundError as error:
        raise InputInvalid("missing_file", f"{file.path}: the file has gone since the job started") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise InputInvalid(
            "truncated", f"{file.path}: the data is damaged after row {done} ({error}); write the file again"
        ) from error
    if done != file.num_rows:
        raise InputInvalid(
            "truncated", f"{file.path}: {done} rows were read where the footer says {file.num_rows}; write it again"
        )


def _as_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = [batch[field.name].cast(field.type) for field in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _and_others(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""
