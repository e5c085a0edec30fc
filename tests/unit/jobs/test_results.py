"""Results are what the manifest lists, and nothing else in the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.results import Results, shorten
from storage import layout
from storage.dataset.store import DatasetStore
from storage.errors import FileDamaged, NoSuchJob
from tests.unit.storage.dataset.samples import NOON, publish_night, take_night


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two listed parts with rows 0 to 3, of which row 2 failed, and one part that is not listed."""
    (tmp_path / "data").mkdir()
    for part, rows in enumerate([[0, 1], [2, 3], [98, 99]]):
        status = pa.array(["errored" if row == 2 else "succeeded" for row in rows]).dictionary_encode()
        table = pa.table({"row_index": rows, "status": status, "output_text": [f"text {row}" for row in rows]})
        pq.write_table(table, tmp_path / f"data/part-{part:05d}.parquet")
    listed = [{"path": f"data/part-{part:05d}.parquet", "rows": 2} for part in range(2)]
    (tmp_path / "manifest.json").write_text(json.dumps({"parts": listed}))
    return tmp_path


def row_indices(results: Results) -> list[int]:
    return [row["row_index"] for row in results.rows()]


def test_only_listed_parts_are_read_in_their_order(out: Path) -> None:
    assert row_indices(Results.at(out, "job 1")) == [0, 1, 2, 3]


def test_a_part_that_was_put_aside_for_a_newer_generation_is_read_from_there(out: Path) -> None:
    aside = out / layout.superseded(1) / "data/part-00000.parquet"
    aside.parent.mkdir(parents=True)
    (out / "data/part-00000.parquet").replace(aside)
    (out / "data/part-00002.parquet").replace(out / "data/part-00000.parquet")  # the newer one

    assert row_indices(Results.at(out, "job 1")) == [0, 1, 2, 3]


def test_a_limit_may_end_inside_a_part(out: Path) -> None:
    assert row_indices(Results.at(out, "job 1", limit=3)) == [0, 1, 2]


def test_errors_are_the_rows_that_did_not_succeed(out: Path) -> None:
    assert row_indices(Results.at(out, "job 1", errors_only=True)) == [2]


def test_a_job_without_a_manifest_has_no_results_yet(tmp_path: Path) -> None:
    with pytest.raises(NoSuchJob, match=r"job 1 is queued and has published no results yet"):
        Results.at(tmp_path, "job 1 is queued")


def test_a_listed_part_that_is_gone_is_damage_and_names_the_file(out: Path) -> None:
    (out / "data/part-00001.parquet").unlink()

    with pytest.raises(FileDamaged, match=r"part-00001\.parquet"):
        row_indices(Results.at(out, "job 1"))


@pytest.mark.parametrize(("limit", "expected"), [(None, [0, 1, 2, 3]), (1, [0]), (3, [0, 1, 2])])
def test_exported_parquet_has_the_same_rows(out: Path, tmp_path: Path, limit: int | None, expected: list[int]) -> None:
    written = Results.at(out, "job 1", limit=limit).write_parquet(tmp_path / "copy.parquet")

    assert written == len(expected)
    assert pq.read_table(tmp_path / "copy.parquet")["row_index"].to_pylist() == expected


def test_results_without_rows_are_exported_as_a_file_with_their_columns(tmp_path: Path) -> None:
    take_night(tmp_path, "2026-11-23", rows=0)

    written = Results.of_dataset(tmp_path).write_parquet(tmp_path / "copy.parquet")

    assert written == 0
    assert "output_text" in pq.read_schema(tmp_path / "copy.parquet").names


def test_the_results_of_a_data_set_are_its_current_runs_with_their_labels(tmp_path: Path) -> None:
    take_night(tmp_path, "2026-11-24", rows=2)
    take_night(tmp_path, "2026-11-23", "1", rows=9)
    take_night(tmp_path, "2026-11-23", "2", rows=1)
    take_night(tmp_path, "2026-11-25", rows=5, accepted=False)

    found = Results.of_dataset(tmp_path)

    rows = [(row["dt"], row["row_index"]) for row in found.rows()]
    assert rows == [("2026-11-23", 0), ("2026-11-24", 0), ("2026-11-24", 1)]
    assert found.table_columns[0] == "dt"


def test_a_column_that_only_some_runs_have_is_null_in_the_others(tmp_path: Path) -> None:
    take_night(tmp_path, "2026-11-23", rows=1)
    publish = publish_night(tmp_path, "2026-11-24", rows=1, columns={"topic": pa.array(["sea"])})
    store = DatasetStore(tmp_path)
    store.take(store.judge(publish.verdict()), NOON)

    Results.of_dataset(tmp_path).write_parquet(tmp_path / "copy.parquet")

    copy = pq.read_table(tmp_path / "copy.parquet")
    assert copy.select(["dt", "topic"]).to_pylist() == [
        {"dt": "2026-11-23", "topic": None},
        {"dt": "2026-11-24", "topic": "sea"},
    ]


def test_exported_json_lines_have_the_same_rows(out: Path, tmp_path: Path) -> None:
    written = Results.at(out, "job 1").write_jsonl(tmp_path / "copy.jsonl")

    lines = (tmp_path / "copy.jsonl").read_text().splitlines()
    assert written == len(lines) == 4
    assert json.loads(lines[2]) == {"row_index": 2, "status": "errored", "output_text": "text 2"}


def test_a_table_shows_long_text_on_one_short_line() -> None:
    row = shorten({"output_text": "a\n" + "b" * 100, "row_index": 1}, ["row_index", "output_text"], width=10)

    assert row == {"row_index": 1, "output_text": "a\\nbbbbbb…"}
