"""Which rows of its input a job has, when it has not all: `_meta/input_rows.parquet`, made with the plan.

Row i of the file is the place in the input of the job's row i.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storage.parquet.sealed import SealedWriter, read_sealed

Places = npt.NDArray[np.int64]
SCHEMA = pa.schema([pa.field("input_row", pa.int64(), nullable=False)])
GROUP_ROWS = 1 << 20


def write_chosen(path: Path, places: Places) -> None:
    """Ascending places in the input; the file is durable when this returns."""
    with SealedWriter(path, SCHEMA) as file:
        for lo in range(0, len(places), GROUP_ROWS):
            file.write(pa.table([pa.array(places[lo : lo + GROUP_ROWS])], schema=SCHEMA))
        file.seal()


def read_chosen(path: Path) -> Places:
    """Raises FileDamaged."""
    batches = read_sealed(path)
    return np.concatenate([np.empty(0, np.int64), *(batch["input_row"].to_numpy() for batch in batches)])
