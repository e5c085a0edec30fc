"""A submit of very many short rows through the whole program with a fake engine: no process grows with the rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.acceptance.memory import watch
from tests.fakes import make_fake_model
from tests.integration.program import ROOT, Program
from tests.integration.test_plan_memory import write_input

LIMIT_MEGABYTES = 500


def submit_rows(folder: Path, num_rows: int, note_bytes: int, timeout: float) -> dict[str, float]:
    """Peaks by role of an embedded submit of so many rows, which all come out, in order."""
    source, out = folder / f"{num_rows}.parquet", folder / f"out-{num_rows}"
    write_input(source, num_rows, note_bytes)
    model = make_fake_model(folder / "model")
    program = Program(folder, {"NIGHTMILL_HOME": str(folder / f"home-{num_rows}")})
    arguments = [source, "-o", out, "--model", model, "--id-column", "key", "--max-tokens", "16"]
    with (folder / "log").open("w") as log:
        peaks = watch(program.start(ROOT / "submit_job.py", *arguments, stderr=log, stdout=log), timeout)
    done = 0
    for part in sorted((out / "data").glob("*.parquet")):
        for batch in pq.ParquetFile(part).iter_batches(columns=["row_index", "status"]):
            assert batch["row_index"].to_pylist() == list(range(done, done + batch.num_rows))
            assert set(batch["status"].to_pylist()) == {"succeeded"}
            done += batch.num_rows
    assert done == num_rows, (folder / "log").read_text()[-2000:]
    print(f"{num_rows} rows: {peaks}")
    return peaks


@pytest.mark.integration
def test_no_process_grows_with_the_rows(tmp_path: Path) -> None:
    # Notes of 512 bytes let both inputs fill every buffer that has a bound.
    few = submit_rows(tmp_path, 40_000, 512, timeout=240)
    more = submit_rows(tmp_path, 80_000, 512, timeout=240)

    assert few.keys() == more.keys() == {"program", "worker", "broker"}
    assert all(peak < LIMIT_MEGABYTES for peak in more.values())
    assert max(more.values()) <= 1.1 * max(few.values())


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_million_rows_stay_below_500_megabytes_in_every_process(tmp_path: Path) -> None:
    million = submit_rows(tmp_path, 1_000_000, 16, timeout=1200)
    two_million = submit_rows(tmp_path, 2_000_000, 16, timeout=1800)

    assert all(peak < LIMIT_MEGABYTES for peak in million.values())
    # The largest process: a worker's peak depends on how many attempts happen to overlap, not on the rows.
    assert max(two_million.values()) <= 1.1 * max(million.values())
