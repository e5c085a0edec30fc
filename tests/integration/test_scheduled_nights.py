"""Nights of a schedule over an input that grows: what its runs hold together, and what happens to those made again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from jobs.planning import silent
from jobs.retrying import Choice, retry
from jobs.schedules import actions
from storage.dataset.current import read_current
from storage.dataset.store import DatasetStore
from storage.errors import JobConflict
from storage.states import RunState
from tests.integration.mill import Mill, make_mill

pytestmark = pytest.mark.integration


@pytest.fixture
def mill(tmp_path: Path) -> Iterator[Mill]:
    with make_mill(tmp_path) as made:
        yield made
        made.repository.check_integrity()
        DatasetStore(made.dataset).check_integrity()


def union(mill: Mill, columns: str) -> list[tuple[Any, ...]]:
    """Of all that is current, as DuckDB reads it."""
    files = [str(mill.dataset / file) for run in read_current(mill.dataset).runs for file in run.files]
    return duckdb.sql(f"SELECT {columns} FROM read_parquet($files)", params={"files": files}).fetchall()


def made_again(mill: Mill, label: str) -> RunState:
    """As `nightmill schedule run --date LABEL --again` has it."""
    actions.run_now(mill.repository, "stories", label, again=True)
    mill.work()
    return mill.run(label).state


@pytest.mark.parametrize("refused", [True, False], ids=["refused", "current"])
def test_rows_of_a_run_are_not_run_again_in_place_but_by_making_its_date_again(mill: Mill, refused: bool) -> None:
    mill.declare(terms={"min_success_rate": 0.9} if refused else {})
    run = mill.night(1, prompt=["one", ""])  # an empty prompt is an error
    assert run.job_id is not None
    assert run.state == (RunState.GATES_FAILED if refused else RunState.SUCCEEDED)
    files = {path: path.read_bytes() for path in mill.dataset.rglob("*") if path.is_file()}

    with pytest.raises(JobConflict, match=r"`nightmill schedule run stories --date 2026-11-01 --again`"):
        retry(run.job_id, Choice(statuses=frozenset({"errored"}), options={}), mill.repository, mill.settings, silent)
    assert {path: path.read_bytes() for path in mill.dataset.rglob("*") if path.is_file()} == files
    mill.write(prompt=["one", "two"])
    assert made_again(mill, run.label) == RunState.SUCCEEDED

    again = mill.run(run.label)
    assert (again.attempt, again.run_id == run.run_id) == (2, False)
    assert [current.run for current in read_current(mill.dataset).runs] == [again.run_id]
    assert sorted(union(mill, "prompt, status")) == [("one", "succeeded"), ("two", "succeeded")]
    with pytest.raises(JobConflict, match="made the run 2026-11-01 of a data set"):  # what was read before stays, too
        retry(run.job_id, Choice(statuses=frozenset({"errored"}), options={}), mill.repository, mill.settings, silent)


def test_an_older_run_of_what_is_new_that_is_made_again_leaves_out_what_later_nights_have(mill: Mill) -> None:
    mill.declare(only_new=True, terms={"min_success_rate": 0.9})
    assert mill.night(1, prompt=["one", "two"]).state == RunState.SUCCEEDED
    assert mill.night(2, prompt=["one", "two", "three", ""]).state == RunState.GATES_FAILED
    assert mill.night(3, prompt=["one", "two", "three", "four"]).state == RunState.SUCCEEDED

    assert [made_again(mill, label) for label in ("2026-11-02", "2026-11-01")] == [RunState.SUCCEEDED] * 2

    assert sorted(union(mill, "prompt")) == [("four",), ("one",), ("three",), ("two",)]
    rows = {run.label: run.rows for run in read_current(mill.dataset).runs}
    assert rows == {"2026-11-01": 2, "2026-11-02": 0, "2026-11-03": 2}


def test_a_run_that_is_refused_when_it_is_made_again_leaves_readers_what_they_have(mill: Mill) -> None:
    mill.declare(terms={"min_success_rate": 0.9})
    run = mill.night(1, prompt=["one", "two"])
    before = (mill.dataset / "current.json").read_bytes()

    mill.write(prompt=["one", ""])
    assert made_again(mill, run.label) == RunState.GATES_FAILED

    assert (mill.dataset / "current.json").read_bytes() == before
    assert sorted(union(mill, "prompt")) == [("one",), ("two",)]
