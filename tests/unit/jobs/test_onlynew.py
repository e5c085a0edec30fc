"""Only new rows: what a data set has is left out, what it has not is planned once."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.columns import Columns, choose_columns
from jobs.inputrows import content_ids
from jobs.onlynew import choose_new, known_keys
from jobs.options import SubmitOptions, changed_keys, hash_spec
from jobs.planning import silent
from jobs.submit import dry_run
from storage import layout
from storage.errors import FileDamaged, InputInvalid
from storage.parquet.chosen import read_chosen
from storage.parquet.plan import plan_indices
from storage.parquet.reader import open_input
from storage.states import JobState
from tests.unit.jobs.desk import Desk
from tests.unit.storage.dataset.samples import take_night

MONDAY = "2026-11-23"


def columns_of(path: Path, **options: Any) -> Columns:
    wanted = SubmitOptions(inputs=(str(path),), output=Path("out"), model="m", **options)
    return choose_columns(open_input([str(path)]).schema, wanted)


def new_rows(path: Path, dataset: Path, limit: int | None = None) -> list[int]:
    inputs = open_input([str(path)])
    return choose_new(inputs, columns_of(path), known_keys(dataset), limit=limit, progress=silent).tolist()


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def take_ids(dataset: Path, label: str, ids: list[str], accepted: bool = True) -> None:
    """A run that generated these ids; every fifth row of it failed."""
    take_night(dataset, label, rows=len(ids), accepted=accepted, columns={"custom_id": ids})


def test_a_row_is_known_by_its_id_once_it_succeeded_in_a_current_run(tmp_path: Path) -> None:
    dataset = tmp_path / "stories"
    take_ids(dataset, MONDAY, ["a", "b", "c", "d", "failed"])
    take_ids(dataset, "2026-11-24", ["refused"], accepted=False)
    today = write(tmp_path / "in.parquet", custom_id=["x", "a", "failed", "refused", "c"], prompt=["p"] * 5)

    assert new_rows(today, dataset) == [0, 2, 3]


def test_a_row_without_an_id_is_known_by_its_content(tmp_path: Path) -> None:
    dataset, today = tmp_path / "stories", write(tmp_path / "in.parquet", prompt=["old", "new", "also new"])
    batch = next(open_input([str(today)]).batches(10))
    take_ids(dataset, MONDAY, content_ids(batch, columns_of(today)).to_pylist()[:1])

    assert new_rows(today, dataset) == [1, 2]


def test_before_the_first_run_every_row_is_new_and_equal_content_is_new_once(tmp_path: Path) -> None:
    today = write(tmp_path / "in.parquet", prompt=["a", "b", "a", "b", "c"])

    assert new_rows(today, tmp_path / "stories") == [0, 1, 4]


def test_the_limit_counts_new_rows(tmp_path: Path) -> None:
    take_ids(tmp_path / "stories", MONDAY, ["0", "1"])
    today = write(tmp_path / "in.parquet", custom_id=["0", "1", "2", "3", "4"], prompt=["p"] * 5)

    assert new_rows(today, tmp_path / "stories", limit=2) == [2, 3]


def test_content_is_the_prompt_and_the_options_of_its_row_and_nothing_else(tmp_path: Path) -> None:
    def ids(**columns: Any) -> list[str]:
        path = write(tmp_path / "in.parquet", **columns)
        return content_ids(next(open_input([str(path)]).batches(10)), columns_of(path)).to_pylist()

    plain, hotter = ids(prompt=["a", "b"]), ids(prompt=["a", "a"], temperature=[None, 0.5])
    chats = ids(messages=[[{"role": "user", "content": "a"}], [{"role": "user", "content": "a", "name": "x"}]])

    assert plain[0] != plain[1]
    assert ids(prompt=["b"], note=["other"]) == plain[1:]
    assert hotter[0] == plain[0] != hotter[1]
    assert chats[0] == ids(messages=[[{"role": "user", "content": "a"}]])[0] != chats[1]


def test_a_key_whose_hash_ends_in_zeros_is_no_other_key(tmp_path: Path) -> None:
    keys = np.frombuffer(bytes(range(1, 16)) + b"\0" + bytes(range(1, 17)) + b"\0" * 16, dtype="S16")

    assert len(np.unique(keys)) == 3
    assert (np.searchsorted(np.unique(keys), keys) == [1, 2, 0]).all()


def test_a_damaged_data_set_stops_the_plan_rather_than_generate_twice(tmp_path: Path) -> None:
    dataset, today = tmp_path / "stories", write(tmp_path / "in.parquet", prompt=["a"])
    take_ids(dataset, MONDAY, ["a"])
    next(dataset.rglob("part-00000.parquet")).unlink()

    with pytest.raises(FileDamaged, match="part-00000"):
        new_rows(today, dataset)


def test_a_label_that_is_made_again_generates_its_own_rows_again_and_no_others(desk: Desk) -> None:
    dataset = desk.folder / "stories"
    desk.write({"custom_id": ["a", "b", "c"], "prompt": ["1", "2", "3"]})
    take_ids(dataset, MONDAY, ["a", "b"])
    take_ids(dataset, "2026-11-24", ["c"])

    desk.submit(only_new=dataset, output=dataset / "_runs" / MONDAY / "2")

    plan = dataset / "_runs" / MONDAY / "2" / layout.PLAN
    assert sorted(pq.read_table(plan)["custom_id"].to_pylist()) == ["a", "b"]


def test_known_keys_take_sixteen_bytes_each(tmp_path: Path) -> None:
    take_ids(tmp_path, MONDAY, [f"a rather long identifier of row {row:06d}" for row in range(20_000)])

    tracemalloc.start()
    keys = known_keys(tmp_path)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert len(keys) == 16_000
    assert held < 20 * len(keys)


def test_the_plan_holds_new_rows_numbered_without_gaps_and_named_by_content(desk: Desk) -> None:
    dataset = desk.folder / "stories"
    batch = next(open_input([str(desk.input)]).batches(10))
    ids = content_ids(batch, columns_of(desk.input)).to_pylist()
    take_ids(dataset, MONDAY, ids[1:2])

    submitted = desk.submit(only_new=dataset)

    plan = desk.out / layout.PLAN
    assert submitted.plan is not None
    assert submitted.plan.left_out == 1
    assert plan_indices(plan).tolist() == [0, 1]
    assert sorted(pq.read_table(plan)["custom_id"].to_pylist()) == sorted([ids[0], ids[2]])
    assert read_chosen(desk.out / layout.INPUT_ROWS).tolist() == [0, 2]


def test_an_input_with_nothing_new_is_a_job_without_rows(desk: Desk) -> None:
    dataset = desk.folder / "stories"
    batch = next(open_input([str(desk.input)]).batches(10))
    take_ids(dataset, MONDAY, content_ids(batch, columns_of(desk.input)).to_pylist())

    submitted = desk.submit(only_new=dataset)

    assert submitted.job.state is JobState.QUEUED
    assert (submitted.job.rows_total, submitted.job.shards_total) == (0, 0)
    assert dry_run(replace(desk.options, only_new=dataset), desk.settings).left_out == 3


def test_ids_that_come_twice_are_refused_also_among_new_rows(desk: Desk) -> None:
    desk.write({"custom_id": ["a", "b", "b"], "prompt": ["1", "2", "3"]})

    with pytest.raises(InputInvalid, match="repeated ids"):
        desk.submit(only_new=desk.folder / "stories")

    assert not desk.out.exists()


def test_the_same_command_attaches_to_its_job_although_the_data_set_has_moved_on(desk: Desk) -> None:
    first = desk.submit(only_new=desk.folder / "stories")
    take_ids(desk.folder / "stories", MONDAY, ["a"])

    again = desk.submit(only_new=desk.folder / "stories")

    assert again.job.id == first.job.id


def test_only_new_is_part_of_the_specification_when_it_is_asked_for_and_else_changes_no_hash(desk: Desk) -> None:
    plain, only_new = desk.options, replace(desk.options, only_new=Path("stories"))

    assert "only_new" not in plain.spec("k")
    assert hash_spec(plain.spec("k")) != hash_spec(only_new.spec("k"))
    assert changed_keys(only_new.spec("k"), plain.spec("k")) == [f"only_new: {str(Path.cwd() / 'stories')!r} -> None"]
    thawed = SubmitOptions.thawed(json.loads(json.dumps(only_new.frozen())))
    assert thawed.only_new == Path.cwd() / "stories"
