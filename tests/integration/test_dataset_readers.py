"""What a data set's card says about reading it works: everything that is current as one table with `dt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest

from storage.dataset.card import SNIPPETS, card_bytes
from storage.dataset.store import DatasetStore
from tests.unit.storage.dataset.samples import take_night

EXPECTED = [("2026-11-23", 0), ("2026-11-23", 1), ("2026-11-25", 0), ("2026-11-25", 1), ("2026-11-25", 2)]


@pytest.fixture
def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two nights with rows, one without, one replaced and one refused; the reader stands in the folder."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    dataset = tmp_path / "stories"
    take_night(dataset, "2026-11-23", "1", rows=4)
    take_night(dataset, "2026-11-23", "2", rows=2)
    take_night(dataset, "2026-11-24", rows=0)
    take_night(dataset, "2026-11-25", rows=3)
    take_night(dataset, "2026-11-26", rows=5, accepted=False)
    DatasetStore(dataset).write_card(lambda current, verdicts: card_bytes("stories", current, verdicts))
    monkeypatch.chdir(dataset)
    return dataset


def rows_of(table: Any) -> list[tuple[str, int]]:
    """(dt, row_index) of what a snippet has left in `table`."""
    if isinstance(table, datasets.Dataset):
        return sorted(zip(table["dt"], table["row_index"], strict=True))
    arrow = table.to_arrow_table() if hasattr(table, "to_arrow_table") else table
    return sorted(zip(arrow["dt"].to_pylist(), arrow["row_index"].to_pylist(), strict=True))


@pytest.mark.parametrize("reader", SNIPPETS)
def test_three_lines_of_the_card_read_what_is_current_as_one_table(nights: Path, reader: str) -> None:
    card = (nights / "README.md").read_text()
    assert f"```python\n{SNIPPETS[reader]}```" in card
    assert len(SNIPPETS[reader].splitlines()) == 3

    names: dict[str, Any] = {}
    exec(SNIPPETS[reader], names)

    assert rows_of(names["table"]) == EXPECTED


def test_the_front_matter_of_the_card_lets_the_folder_be_loaded_by_its_name(nights: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(str(nights), split="train", cache_dir=str(tmp_path / "other"))

    assert loaded["row_index"] == [index for _, index in EXPECTED]
