"""The card says what is current and what became of every other run, whatever the folder is called."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from storage.dataset import names
from storage.dataset.card import card_bytes
from storage.dataset.reading import open_dataset
from storage.dataset.store import DatasetStore
from tests.unit.storage.dataset.samples import publish_night, take_night

MONDAY, TUESDAY = "2026-11-23", "2026-11-24"


def write_card(dataset: Path) -> str:
    DatasetStore(dataset).write_card(lambda current, verdicts: card_bytes(dataset.name, current, verdicts))
    return (dataset / names.README).read_text()


def test_the_card_has_a_line_for_each_run_and_only_current_files(tmp_path: Path) -> None:
    take_night(tmp_path, MONDAY, "1")
    take_night(tmp_path, MONDAY, "2")
    take_night(tmp_path, TUESDAY, accepted=False)
    store = DatasetStore(tmp_path)

    store.write_card(lambda current, verdicts: card_bytes("stories", current, verdicts))

    card = (tmp_path / "README.md").read_text()
    front, body = card.split("---\n")[1:]
    assert f'    - "_runs/{MONDAY}/2/data/part-00000.parquet"' in front
    assert "/1/" not in front
    rows = [line for line in body.splitlines() if line.startswith("| 2026")]
    assert [line.split(" | ")[3] for line in rows] == ["refused", "current", "replaced"]
    assert "wanted at least 0.9" in rows[0]


def test_a_readme_that_is_no_card_stays_as_it_is(tmp_path: Path) -> None:
    take_night(tmp_path, MONDAY, "1")
    (tmp_path / "README.md").write_text("# My project\n")
    store = DatasetStore(tmp_path)

    store.write_card(lambda current, verdicts: card_bytes("stories", current, verdicts))

    assert (tmp_path / "README.md").read_text() == "# My project\n"


def test_a_run_that_a_crash_has_kept_from_coming_in_is_not_called_replaced(tmp_path: Path) -> None:
    take_night(tmp_path, TUESDAY)
    DatasetStore(tmp_path).judge(publish_night(tmp_path, MONDAY).verdict())

    card = write_card(tmp_path)

    assert f"| {MONDAY} | 1 | 1 | accepted |" in card


@pytest.mark.parametrize(
    "name", ["a b", "n\u00e4chte\U0001f600", "dt=2026", "b[r]a*c?", "'quote\"", "http:x", "two\nlines"]
)
def test_the_folder_may_have_any_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_night(tmp_path / name, MONDAY, rows=2)

    card = write_card(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    table = open_dataset(Path(name)).to_table()

    assert yaml.safe_load(card.split("---\n")[1])["pretty_name"] == name.replace("\n", " ")
    assert f"# {name}".replace("\n", " ") in card.splitlines()
    assert table["dt"].to_pylist() == [MONDAY, MONDAY]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    take_night(tmp_path, MONDAY)
    (tmp_path / ".current.json.0123456789ab.tmp").touch()

    write_card(tmp_path)

    assert not list(tmp_path.glob(".*.tmp"))
