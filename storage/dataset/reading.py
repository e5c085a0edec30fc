"""Read a data set: what is current as one table, the label of each row in the column `dt`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from storage.dataset import names
from storage.dataset.current import Current, read_current
from storage.durable import inside
from storage.errors import FileDamaged, FileUnreadable, NoSuchDataset, may_pass
from storage.parquet.generations import listed_file


def open_dataset(folder: Path) -> ds.Dataset:
    """All current rows, in the order of labels. What has been opened stays as it is, however the data set moves on.

    Raises NoSuchDataset when nothing is current, FileDamaged, FileUnreadable.
    """
    folder = Path(os.path.abspath(folder))  # a relative one may look like an address
    files = [file.path for file in current_files(folder, read_current(folder))]
    if not files:
        raise NoSuchDataset(f"{folder} has no current run yet")
    try:
        schema = pa.unify_schemas([pq.read_schema(file).remove_metadata() for file in files])
        labels = pa.field(names.LABEL_COLUMN, pa.string())
        return ds.dataset(
            [str(file) for file in files],
            schema=schema.append(labels),
            format="parquet",
            partitioning=ds.partitioning(pa.schema([labels])),
            partition_base_dir=str(folder / names.RUNS),
        )
    except (OSError, pa.ArrowException) as error:
        kind = FileUnreadable if may_pass(error) else FileDamaged
        raise kind(f"{folder}: what is current cannot be read as one table: {error}") from error


@dataclass(frozen=True, slots=True)
class CurrentFile:
    """A data part of a current run, where it is now."""

    label: str | None
    path: Path


def current_files(folder: Path, current: Current) -> Iterator[CurrentFile]:
    """The data parts of all current runs, labels and parts in order."""
    for run in current.runs:
        for key in run.files:
            out = inside(folder, run.folder)
            yield CurrentFile(run.label, listed_file(out, run.generation, str(Path(key).relative_to(run.folder))))
