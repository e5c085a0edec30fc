"""Planning takes the memory of some batches and one shard, whatever the number of rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.jobs.tiny_model import make_model

CHECKOUT = Path(__file__).parents[2]
SMOLLM2 = CHECKOUT / ".cache/models/smollm2-135m"

PLAN = """
import sys
from pathlib import Path
from jobs.options import SubmitOptions
from jobs.settings import Settings
from jobs.submit import dry_run
source, model, home = sys.argv[1:]
plan = dry_run(
    SubmitOptions(inputs=(source,), output=Path(home) / "out", model=model, id_column="key"), Settings(home=Path(home))
)
# ru_maxrss would be that of the process that started this one, where it was larger.
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(plan.record.num_rows, int(peak) / 1024)
"""


def write_input(path: Path, num_rows: int, note_bytes: int) -> None:
    """Short prompts that share beginnings, unique ids, and a column to pass through."""
    schema = pa.schema([("key", pa.string()), ("prompt", pa.string()), ("note", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, num_rows, 20_000):
            rows = range(start, min(start + 20_000, num_rows))
            prompts = [f"Describe thing {row * 7919 % 1013} of kind {row}" for row in rows]
            notes = [f"{row:08d}" * (note_bytes // 8) for row in rows]
            writer.write_table(pa.table([[f"k{row}" for row in rows], prompts, notes], schema=schema))


def peak_megabytes(folder: Path, model: Path, num_rows: int, note_bytes: int, timeout: int) -> float:
    """The resident peak of a process that plans so many rows."""
    source = folder / f"{num_rows}.parquet"
    write_input(source, num_rows, note_bytes)
    command = [sys.executable, "-c", PLAN, str(source), str(model), str(folder)]
    run = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=timeout)
    assert run.returncode == 0, run.stderr
    planned, peak = run.stdout.split()
    assert int(planned) == num_rows
    return float(peak)


@pytest.mark.integration
def test_twice_the_rows_need_the_same_memory(tmp_path: Path) -> None:
    # Notes of 1 kB let both inputs fill the sorter's memory, so that both spill.
    model = make_model(tmp_path / "model", context=512)

    some = peak_megabytes(tmp_path, model, 40_000, 1024, timeout=240)
    twice = peak_megabytes(tmp_path, model, 80_000, 1024, timeout=240)

    assert twice <= 1.1 * some
    assert twice < 500


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.timeout(3600)
def test_a_million_rows_stay_below_500_megabytes_and_two_million_need_a_tenth_more_at_most(tmp_path: Path) -> None:
    million = peak_megabytes(tmp_path, SMOLLM2, 1_000_000, 16, timeout=1500)
    two_million = peak_megabytes(tmp_path, SMOLLM2, 2_000_000, 16, timeout=2000)

    assert million < 500
    assert two_million <= 1.1 * million
