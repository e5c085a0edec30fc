"""A Parquet file of our own: it appears whole, durable and with a checksum on every page, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from storage.durable import make_folder, move, sha256_file, sync_file, sync_folder, temporary
from storage.errors import FileDamaged

READ_BUFFER = 1 << 18
"""Bytes read ahead per column; without it a whole column chunk is held."""


class SealedWriter:
    """Writes one file; each `write` is one row group. Leaving the `with` block without `seal` discards the file."""

    def __init__(self, path: Path, schema: pa.Schema, *, statistics: bool = True) -> None:
        make_folder(path.parent)
        self.path = path
        self.schema = schema
        self.num_rows = 0
        self._draft = temporary(path)
        self._writer = pq.ParquetWriter(
            str(self._draft),
            schema,
            compression="zstd",
            write_statistics=statistics,
            write_page_checksum=True,
        )
        self._sealed = False

    def write(self, table: pa.Table) -> None:
        """Append one row group. One chunk per column, so that equal rows give equal bytes however they arrived."""
        assert table.num_rows > 0, "an empty row group says nothing"
        self._writer.write_table(table.combine_chunks(), row_group_size=table.num_rows)
        self.num_rows += table.num_rows

    def seal(self) -> str:
        """Give the file its name, durable; its sha256."""
        self._writer.close()
        sync_file(self._draft)
        sha256 = sha256_file(self._draft)
        move(self._draft, self.path)
        self._sealed = True
        sync_folder(self.path.parent)
        return sha256

    def discard(self) -> None:
        """Forget an unsealed file; harmless after `seal`."""
        if not self._sealed:
            self._writer.close()
            self._draft.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def open_sealed(path: Path) -> pq.ParquetFile:
    """Open one of our own files with flat memory and checked pages. Raises FileDamaged."""
    try:
        return pq.ParquetFile(str(path), pre_buffer=False, buffer_size=READ_BUFFER, page_checksum_verification=True)
    except FileNotFoundError as error:
        raise FileDamaged(f"{path} is missing") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise FileDamaged(f"{path} is not readable Parquet: {error}") from error


def read_sealed(
    path: Path, *, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None, batch_rows: int = 4096
) -> Iterator[pa.RecordBatch]:
    """Stream one of our own files. Raises FileDamaged."""
    with open_sealed(path) as file:
        batches = file.iter_batches(
            batch_rows,
            row_groups=row_groups,
            columns=list(columns) if columns is not None else None,
            use_threads=False,
        )
        try:
            yield from batches
        except (OSError, pa.ArrowInvalid) as error:
            raise FileDamaged(f"{path} cannot be read to its end: {error}") from error
