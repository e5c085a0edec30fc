"""Generations of a published data set: the present one is read, replaced part by part, and stays readable.

A part of a newer generation has the name and the rows of the part that it replaces, so that whoever reads the folder
`data` meets each row once, in its old or in its new form, whatever a publisher is doing or has left undone. Before a
file is replaced, its content gets a second name below `_meta/superseded/<generation>`; there, or else at its own
place, is what that generation lists.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage import layout
from storage.durable import inside, make_folder, sha256_bytes, sha256_file, sync_folder
from storage.errors import FileDamaged
from storage.parquet.parts import Part
from storage.parquet.schema import KEY, METRIC_FIELDS, PASS, complete
from storage.parquet.sealed import open_sealed, read_sealed
from storage.parquet.sorting import Key

Indices = npt.NDArray[np.int64]


def listed_file(out: Path, generation: int, key: str) -> Path:
    """Where a file is that this generation's manifest lists: the first newer one that changed it put it aside."""
    for folder in _superseded(out):
        if int(folder.name) >= generation and (folder / key).exists():
            return inside(out, f"{layout.superseded(int(folder.name))}/{key}")
    return inside(out, key)


@dataclass(frozen=True, slots=True)
class Selected:
    """Rows of a data set that are to run again: their indices, ascending, and by status the results of all others."""

    rows: Indices
    kept: dict[str, int]


@dataclass(frozen=True, slots=True)
class Generation:
    """A published generation, as its manifest lists it."""

    out: Path
    number: int
    manifest: dict[str, Any]

    @classmethod
    def load(cls, out: Path, number: int, sha256: str | None = None) -> Generation:
        """Raises FileDamaged when its manifest is missing or is not the one that was recorded."""
        path = out / layout.manifest_generation(number)
        try:
            content = path.read_bytes()
            manifest = json.loads(content)
        except (OSError, ValueError) as error:
            raise FileDamaged(f"{path} cannot be read ({error}), so nothing can be built on its results") from error
        if sha256 is not None and sha256_bytes(content) != sha256:
            raise FileDamaged(f"{path} was changed after it was published; restore it")
        return cls(out, number, manifest)

    @property
    def num_rows(self) -> int:
        """Rows of the input that it covers."""
        parts = self.manifest["parts"]
        return int(parts[-1]["row_index_max"]) + 1 if parts else 0

    def verify(self) -> None:
        """Raise FileDamaged unless data and metrics are as the manifest says."""
        for part in (*self.manifest["parts"], *self.manifest["metrics"]):
            path = self._path(part)
            if not path.is_file() or sha256_file(path) != part["sha256"]:
                raise FileDamaged(f"{path} is missing or was changed after it was published; restore it")

    def starts(self) -> list[Key]:
        """The key of the first row of each data part but the first."""
        first = (next(read_sealed(self._path(part), columns=KEY)) for part in self.manifest["parts"][1:])
        return [tuple(batch[name][0].as_py() for name in KEY) for batch in first]

    def rows(self, schema: pa.Schema, without: Indices) -> Iterator[pa.RecordBatch]:
        """Its results in order, in `schema` (that of shard files with a plain status), but those of some rows."""
        for data, metrics in zip(self.manifest["parts"], self.manifest["metrics"], strict=True):
            for batch in _joined(self._path(data), self._path(metrics), schema):
                mask = np.isin(batch["row_index"].to_numpy(), without, invert=True)
                kept = batch if mask.all() else batch.filter(pa.array(mask))
                if kept.num_rows:
                    yield kept

    def select(self, statuses: frozenset[str], finish_reasons: frozenset[str]) -> Selected:
        """The rows of which a sample has one of these statuses or finish reasons; all samples of a row go together."""
        found: list[Indices] = []
        for batch in self._read(("row_index", "status", "finish_reason")):
            reasons = batch["finish_reason"].to_pylist()
            ends = zip(batch["status"].to_pylist(), reasons, strict=True)
            hit = [status in statuses or reason in finish_reasons for status, reason in ends]
            found.append(batch["row_index"].to_numpy()[np.array(hit, dtype=bool)])
        rows = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
        kept: Counter[str] = Counter()
        for batch in self._read(("row_index", "status")):
            others = np.isin(batch["row_index"].to_numpy(), rows, invert=True)
            kept.update(batch["status"].filter(pa.array(others)).to_pylist())
        return Selected(rows, dict(kept))

    def put_aside(self, parts: Sequence[Part]) -> None:
        """Give a second name to everything that is not among `parts`, durably, before it is replaced."""
        same = {(part.path, part.sha256) for part in parts}
        aside = inside(self.out, layout.superseded(self.number))
        folders = set()
        for part in (part for kind in ("parts", "metrics", "errors") for part in self.manifest[kind]):
            target = aside / part["path"]
            if (part["path"], part["sha256"]) in same or target.exists():
                continue  # an interrupted publisher has put it aside; what is in its place now is perhaps newer
            make_folder(target.parent)
            os.link(self._path(part), target)
            folders.add(target.parent)
        for folder in folders:
            sync_folder(folder)

    def _path(self, part: dict[str, Any]) -> Path:
        return listed_file(self.out, self.number, part["path"])

    def _read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for part in self.manifest["parts"]:
            yield from read_sealed(self._path(part), columns=columns)


def collectable(out: Path, newest: int) -> list[Path]:
    """What only generations below `newest` list: files and, behind them, the folders that hold nothing else."""
    old = [path for path in _superseded(out) if int(path.name) < newest]
    manifests = [out / layout.manifest_generation(number) for number in range(1, newest)]
    return [*(path for path in manifests if path.exists()), *old]


def collect(out: Path, newest: int) -> None:
    """Delete it. Manifests go first, so that none lists what is gone."""
    for path in collectable(out, newest):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # something newer is in it, or it never was
        (out / layout.SUPERSEDED).rmdir()
    sync_folder(out / layout.META)


def _superseded(out: Path) -> list[Path]:
    """The folders of generations of which something was replaced, oldest first."""
    folder = out / layout.SUPERSEDED
    return sorted(path for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def _joined(data: Path, metrics: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a data part with those of its metrics, which were written group by group with the same rows."""
    num_passed = sum(name.startswith(PASS) for name in schema.names)
    own = [field.name for field in METRIC_FIELDS]
    with open_sealed(data) as left, open_sealed(metrics) as right:
        for group in range(left.num_row_groups):
            table, more = left.read_row_group(group, use_threads=False), right.read_row_group(group, use_threads=False)
            if table.num_rows != more.num_rows:
                raise FileDamaged(f"{metrics} has not the rows of {data}")
            names = table.schema.names
            table = table.rename_columns([*(PASS + name for name in names[:num_passed]), *names[num_passed:]])
            for name in own:
                if name in more.schema.names:
                    table = table.append_column(name, more[name])
            for batch in table.combine_chunks().to_batches():
                yield complete(batch, schema)
