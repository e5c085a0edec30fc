"""What a data set's card says about reading it works: everything that is current as one table with `dt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.results import Results
from storage.dataset.card import SNIPPETS, card_bytes
from storage.dataset.reading import open_dataset
from storage.dataset.store import DatasetStore
from tests.unit.storage.dataset.samples import take_night

EXPECTED = [("2026-11-23", 0), ("2026-11-23", 1), ("2026-11-25", 0), ("2026-11-25", 1), ("2026-11-25", 2)]


NOTHING = pa.array([None, None])
CASES: dict[str, list[dict[str, Any]]] = {
    "one label": [{"rows": 2}],
    "a column that was added later": [{"rows": 2}, {"rows": 2, "columns": {"score": [1.5, 2.0]}}],
    "a column that was dropped": [{"rows": 2, "columns": {"score": [1.5, 2.0]}}, {"rows": 2}],
    "a run without rows, which has a column more": [
        {"rows": 0, "columns": {"score": pa.array([], pa.float64())}},
        {"rows": 2},
    ],
    "only runs without rows": [{"rows": 0}, {"rows": 0}],
    "nothing, then texts": [{"rows": 2, "columns": {"note": NOTHING}}, {"rows": 2, "columns": {"note": ["a", "b"]}}],
    "texts, then nothing": [{"rows": 2, "columns": {"note": ["a", "b"]}}, {"rows": 2, "columns": {"note": NOTHING}}],
    "names that readers know": [{"rows": 1, "columns": {"filename": ["a"], "_file": ["b"], "file_row_number": [7]}}],
    "nested columns": [{"rows": 1, "columns": {"tags": [["a"]], "of": [{"a": 1, "b": None}]}}, {"rows": 1}],
}
"""What nights of a data set may look like: arguments of `take_night`."""


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def nights(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two nights with rows, one without, one replaced and one refused; the reader stands in the folder."""
    dataset = tmp_path / "stories"
    take_night(dataset, "2026-11-23", "1", rows=4)
    take_night(dataset, "2026-11-23", "2", rows=2)
    take_night(dataset, "2026-11-24", rows=0)
    take_night(dataset, "2026-11-25", rows=3)
    take_night(dataset, "2026-11-26", rows=5, accepted=False)
    DatasetStore(dataset).write_card(lambda current, verdicts: card_bytes("stories", current, verdicts))
    monkeypatch.chdir(dataset)
    return dataset


def as_arrow(table: Any) -> pa.Table:
    if isinstance(table, datasets.Dataset):
        return table.data.table
    return table.to_arrow_table() if hasattr(table, "to_arrow_table") else table


def content(table: pa.Table) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows, whatever their order."""
    return sorted(table.schema.names), sorted(table.to_pylist(), key=lambda row: (row["dt"], row["row_index"]))


def rows_of(table: Any) -> list[tuple[str, int]]:
    """(dt, row_index) of what a snippet has left in `table`."""
    arrow = as_arrow(table)
    return sorted(zip(arrow["dt"].to_pylist(), arrow["row_index"].to_pylist(), strict=True))


@pytest.mark.parametrize("reader", SNIPPETS)
def test_three_lines_of_the_card_read_what_is_current_as_one_table(nights: Path, reader: str) -> None:
    card = (nights / "README.md").read_text()
    assert f"```python\n{SNIPPETS[reader]}```" in card
    assert len(SNIPPETS[reader].splitlines()) == 3

    names: dict[str, Any] = {}
    exec(SNIPPETS[reader], names)

    assert rows_of(names["table"]) == EXPECTED


@pytest.mark.parametrize("case", CASES)
def test_every_way_to_read_gives_the_same_table(
    case: str, tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = tmp_path / "stories"
    for day, night in enumerate(CASES[case]):
        take_night(dataset, f"2026-11-2{day}", **night)
    monkeypatch.chdir(dataset)

    results = Results.of_dataset(dataset)
    results.write_parquet(tmp_path / "all.parquet")
    read = {"results": content(pq.read_table(tmp_path / "all.parquet"))}
    for reader, snippet in SNIPPETS.items():
        names: dict[str, Any] = {}
        exec(snippet, names)
        read[reader] = content(as_arrow(names["table"]))

    expected = content(open_dataset(dataset).to_table())
    assert read == dict.fromkeys(read, expected)
    assert sorted(results.rows(), key=lambda row: (row["dt"], row["row_index"])) == expected[1]
    assert len(expected[1]) == sum(night["rows"] for night in CASES[case])


def test_the_front_matter_of_the_card_lets_the_folder_be_loaded_by_its_name(nights: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(str(nights), split="train", cache_dir=str(tmp_path / "other"))

    assert loaded["row_index"] == [index for _, index in EXPECTED]
