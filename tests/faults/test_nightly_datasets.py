"""A schedule and its data set together, with real processes: an input that grows, a bad night, and who reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from storage.dataset.current import read_current
from storage.dataset.reading import open_dataset
from storage.dataset.store import DatasetStore
from storage.dataset.verdicts import verdicts
from storage.states import RunState
from tests.faults.harness import Harness, prompts, wait_for
from tests.faults.nights import declare, runs_of, wait_for_labels

pytestmark = pytest.mark.integration
FIRST, MORE = prompts(6), prompts(9)


@pytest.fixture
def nights(tmp_path: Path) -> Iterator[Harness]:
    with Harness.create(tmp_path, schedule_tick_seconds=0.2) as harness:
        harness.stop_reconciler()
        harness.start_reconciler_process("r1", NIGHTMILL_SCHEDULE_TICK_SECONDS="0.2")
        harness.start_worker("w0")
        yield harness


def replace_input(harness: Harness, rows: list[str]) -> None:
    """In one step, as whoever makes inputs for a schedule should."""
    os.replace(harness.write_input(rows, "draft"), harness.folder / "nights.parquet")


def has_prompts(dataset: Path, wanted: list[str]) -> bool:
    return sorted(open_dataset(dataset).to_table(columns=["prompt"])["prompt"].to_pylist()) == sorted(wanted)


def test_each_row_of_a_growing_input_is_made_once_and_a_bad_night_leaves_yesterdays_data(nights: Harness) -> None:
    schedule = declare(nights, only_new=True, max_active=1, terms={"min_success_rate": 0.9})
    dataset = nights.folder / "data-nightly"
    replace_input(nights, FIRST)
    wait_for_labels(nights, schedule, 2)  # the second has nothing new
    assert has_prompts(dataset, FIRST)

    replace_input(nights, [*FIRST, "new today", ""])  # an empty prompt is an error
    wait_for(lambda: any(run.state == RunState.GATES_FAILED for run in runs_of(nights, schedule)), "a night is refused")
    during = open_dataset(dataset).count_rows()
    replace_input(nights, MORE)
    wait_for(lambda: has_prompts(dataset, MORE), "what is new comes in")
    nights.repository.pause_schedule(schedule.name)
    wait_for(lambda: not nights.repository.active_runs(schedule.id), "what had begun ends")
    nights.stop()

    assert during == len(FIRST)
    files = [str(dataset / file) for run in read_current(dataset).runs for file in run.files]
    query = "SELECT count(*), count(DISTINCT custom_id) FROM read_parquet($files)"
    assert duckdb.sql(query, params={"files": files}).fetchall() == [(9, 9)]
    refused = [run for run in runs_of(nights, schedule) if run.state == RunState.GATES_FAILED]
    assert all("min_success_rate: 0.5 of all rows succeeded" in (run.reason or "") for run in refused)
    judged = {(verdict.label, verdict.run): verdict.accepted for verdict in verdicts(dataset)}
    ended = {(run.label, run.run_id): run.state == RunState.SUCCEEDED for run in runs_of(nights, schedule) if run.gates}
    assert judged == ended
    DatasetStore(dataset).check_integrity()
    nights.repository.check_integrity()
