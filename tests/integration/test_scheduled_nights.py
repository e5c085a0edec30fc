"""Nights of a schedule over an input that grows: what its runs hold together, and what happens to those made again."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.dataset as ds
import pytest

from jobs.planning import silent
from jobs.retrying import Choice, retry
from jobs.schedules import actions
from storage.dataset.current import read_current
from storage.dataset.reading import open_dataset
from storage.dataset.store import DatasetStore
from storage.dataset.verdicts import verdicts
from storage.errors import JobConflict
from storage.schedule_records import Schedule
from storage.states import RunState
from tests.integration.mill import Mill, make_mill

pytestmark = pytest.mark.integration
NIGHTS, ROWS = 5, 20
[SQL] = re.findall(r"```sql\n(.*?)```", (Path(__file__).parents[2] / "docs/nightly.md").read_text(), re.DOTALL)


@pytest.fixture
def mill(tmp_path: Path) -> Iterator[Mill]:
    with make_mill(tmp_path) as made:
        yield made
        made.repository.check_integrity()
        DatasetStore(made.dataset).check_integrity()


def union(mill: Mill, columns: str, where: str = "") -> list[tuple[Any, ...]]:
    """Of all that is current, as DuckDB reads it."""
    files = [str(mill.dataset / file) for run in read_current(mill.dataset).runs for file in run.files]
    query = f"SELECT {columns} FROM read_parquet($files, filename=true) {where}"
    return duckdb.sql(query, params={"files": files}).fetchall()


def growing_inputs(named: bool) -> list[dict[str, list[str]]]:
    """Each night a fifth of the rows is new, and all that were there before are there."""
    made, rows = [], [f"row {place}" for place in range(ROWS)]
    for night in range(NIGHTS):
        made.append({"prompt": list(rows), **({"custom_id": [f"id of {row}" for row in rows]} if named else {})})
        rows = [*(f"row {night}.{place}" for place in range(ROWS // 5)), *rows]
    return made


def made_again(mill: Mill, label: str) -> RunState:
    """As `nightmill schedule run --date LABEL --again` has it."""
    actions.run_now(mill.repository, "stories", label, again=True)
    mill.work()
    return mill.run(label).state


@pytest.mark.parametrize("named", [True, False], ids=["ids", "contents"])
def test_five_nights_of_a_schedule_with_a_fifth_of_new_rows_have_each_row_once(mill: Mill, named: bool) -> None:
    mill.declare(only_new=True, terms={"min_success_rate": 1})
    every = growing_inputs(named)

    runs = [mill.night(day, **columns) for day, columns in enumerate(every, start=1)]

    assert [run.state for run in runs] == [RunState.SUCCEEDED] * NIGHTS
    assert {run.cause for run in runs} == {"schedule"}
    prompts = {row for columns in every for row in columns["prompt"]}
    assert sorted(union(mill, "prompt")) == sorted((prompt,) for prompt in prompts)
    assert union(mill, "count(DISTINCT custom_id)") == [(len(prompts),)]
    assert [run.rows for run in read_current(mill.dataset).runs] == [ROWS, *[ROWS // 5] * (NIGHTS - 1)]


def test_what_the_cache_did_for_each_run_is_in_sql(mill: Mill) -> None:
    mill.declare(only_new=True)
    nights = [mill.night(1, prompt=["a row", "another row"]), mill.night(2, prompt=["a row", "the third"])]

    tokens, blocks = (ask(mill, query) for query in SQL.split("\n\n"))

    stats = [mill.repository.job_stats(run.job_id) for run in nights if run.job_id is not None]
    assert tokens == [
        (run.label, run.job_id, stat.prompt_tokens, stat.cached_tokens) for run, stat in zip(nights, stats, strict=True)
    ]
    assert all(0 < cached < prompt for _, _, prompt, cached in tokens)
    assert [(label, kind) for label, kind, *_ in blocks] == [
        (run.label, kind) for run in nights for kind in ("full", "sliding")
    ]
    assert all(allocated > 0 for _, _, allocated, *_ in blocks)


def ask(mill: Mill, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(mill.folder / "test.db")) as connection:
        return connection.execute(query).fetchall()


def test_a_row_that_failed_is_tried_each_night_and_is_once_among_those_that_succeeded(mill: Mill) -> None:
    mill.declare(only_new=True)
    bad = {"custom_id": ["a", "b"], "prompt": ["one", ""]}  # an empty prompt is an error

    mill.night(1, **bad)
    assert mill.night(2, **bad).state == RunState.FAILED  # of what is new nothing succeeded
    mill.night(3, custom_id=["a", "b", "c"], prompt=["one", "", "three"])
    mill.night(4, custom_id=["a", "b", "c"], prompt=["one", "two", "three"])
    mill.night(5, custom_id=["a", "b", "c"], prompt=["one", "", "three"])  # its key is known by now

    seen = union(mill, "custom_id, status, split_part(filename, '/', -4)")
    assert sorted(seen, key=lambda row: (row[2], row[0])) == [
        ("a", "succeeded", "2026-11-01"),
        ("b", "errored", "2026-11-01"),
        ("b", "errored", "2026-11-03"),
        ("c", "succeeded", "2026-11-03"),
        ("b", "succeeded", "2026-11-04"),
    ]
    assert sorted(union(mill, "custom_id", "WHERE status = 'succeeded'")) == [("a",), ("b",), ("c",)]
    kept = open_dataset(mill.dataset).to_table(filter=ds.field("status") == "succeeded")["custom_id"].to_pylist()
    assert sorted(kept) == ["a", "b", "c"]


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


def test_a_run_whose_deadline_passes_has_failed_and_leaves_readers_what_they_have(mill: Mill) -> None:
    schedule = mill.declare(job={"max_tokens": 6, "shard_rows": 4}, terms={"min_success_rate": 0.1})
    prompts = [f"prompt {row}" for row in range(8)]
    assert mill.night(1, prompt=prompts).state == RunState.SUCCEEDED
    before = (mill.dataset / "current.json").read_bytes()
    mill.repository.change_schedule(schedule_now(mill), replace(schedule.declared, deadline_seconds=0.0))

    run = mill.night(2, prompt=prompts, shards=1)

    assert run.state == RunState.FAILED
    assert "is expired: deadline:" in (run.reason or "")
    assert "has passed with 4 of 8 rows done" in (run.reason or "")
    assert (mill.dataset / "current.json").read_bytes() == before
    [verdict] = verdicts(mill.dataset, run.label)
    assert (verdict.accepted, verdict.rows, verdict.succeeded) == (False, 8, 4)  # what was finished is kept


def schedule_now(mill: Mill) -> Schedule:
    return mill.repository.get_schedule("stories")
