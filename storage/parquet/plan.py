"""The frozen plan of a job: every row in plan order with its token ids, one row group per shard."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.durable import sha256_file
from storage.errors import FileDamaged
from storage.parquet.schema import PASS, plan_schema
from storage.parquet.sealed import SealedWriter, open_sealed, read_sealed


class PlanWriter:
    """Writes the plan shard by shard; it exists only after `close`. Leaving the `with` block before discards it."""

    def __init__(self, path: Path, passed: pa.Schema) -> None:
        self.schema = plan_schema(passed)
        self.num_shards = 0
        self._file = SealedWriter(path, self.schema, statistics=False)

    @property
    def num_rows(self) -> int:
        return self._file.num_rows

    def write_shard(self, batches: Iterable[pa.RecordBatch]) -> int:
        """Append the rows of the next shard, held in memory together; how many. Further columns are left out."""
        rows = [batch.select(self.schema.names).cast(self.schema) for batch in batches]
        table = pa.Table.from_batches(rows, schema=self.schema)
        self._file.write(table)
        self.num_shards += 1
        return int(table.num_rows)

    def close(self) -> str:
        """Make the plan durable; its sha256."""
        return self._file.seal()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.discard()


def read_shard(plan_path: Path, idx: int) -> pa.Table:
    """The rows of shard `idx`, in plan order; only its row group is read. Raises FileDamaged."""
    with open_sealed(plan_path) as file:
        if not 0 <= idx < file.num_row_groups:
            raise FileDamaged(f"{plan_path} holds {file.num_row_groups} shards and so no shard {idx}")
        try:
            return file.read_row_group(idx, use_threads=False)
        except (OSError, pa.ArrowInvalid) as error:
            raise FileDamaged(f"{plan_path}: the rows of shard {idx} cannot be read: {error}") from error


def read_rows(plan_path: Path, idx: int, row_lo: int, row_hi: int) -> pa.Table:
    """Rows [row_lo, row_hi) of the plan's order, all of them in row group `idx`. Raises FileDamaged."""
    first = sum(shard_rows(plan_path)[:idx])
    table = read_shard(plan_path, idx)
    if not first <= row_lo < row_hi <= first + table.num_rows:
        raise FileDamaged(
            f"{plan_path}: shard {idx} has the rows {first} to {first + table.num_rows}, not {row_lo} to {row_hi}"
        )
    return table.slice(row_lo - first, row_hi - row_lo)


def shard_rows(plan_path: Path) -> list[int]:
    """The number of rows of every shard."""
    with open_sealed(plan_path) as file:
        return [file.metadata.row_group(idx).num_rows for idx in range(file.num_row_groups)]


def plan_indices(plan_path: Path) -> npt.NDArray[np.int64]:
    """The row_index of every row of the plan, ascending."""
    batches = read_sealed(plan_path, columns=["row_index"])
    return np.sort(np.concatenate([np.empty(0, np.int64), *(batch["row_index"].to_numpy() for batch in batches)]))


def passed_schema(plan_path: Path) -> pa.Schema:
    """The pass-through columns of a plan under their own names."""
    with open_sealed(plan_path) as file:
        passed = [field for field in file.schema_arrow if field.name.startswith(PASS)]
    return pa.schema([field.with_name(field.name.removeprefix(PASS)) for field in passed])


def verify_plan(path: Path, sha256: str) -> None:
    """Raise FileDamaged unless the plan is the one that was frozen."""
    if not path.is_file():
        raise FileDamaged(f"the plan {path} is missing; submit the job again under another output directory")
    found = sha256_file(path)
    if found != sha256:
        raise FileDamaged(
            f"the plan {path} was changed after submit (sha256 {found}, recorded {sha256}); "
            "restore it or submit the job again under another output directory"
        )
