"""What cannot be read of a data set: damage is in nobody's way but its own run's, trouble of the machine may pass."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from storage.dataset import names
from storage.dataset.card import card_bytes
from storage.dataset.current import read_current
from storage.dataset.reading import open_dataset
from storage.dataset.retention import Retention
from storage.dataset.store import DatasetStore
from storage.errors import FileDamaged, FileUnreadable
from tests.unit.storage.dataset.samples import NOON, days, take_night

MONDAY, TUESDAY = "2026-11-23", "2026-11-24"
KEEP_NOTHING = Retention(keep_runs=0, keep_days=None, keep_failed=days(0), grace=days(0))

DAMAGES = {
    "cut": lambda content: content[:40],
    "of another run": lambda content: content.replace(b'"run": "1"', b'"run": "2"'),
    "of another form": lambda content: content.replace(b'"order": 1', b'"order": "1"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_verdict_is_in_nobodys_way_and_the_card_tells_of_it(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    take_night(tmp_path, MONDAY, "1", accepted=False)
    verdict = tmp_path / "_runs" / MONDAY / "1" / names.verdict(1)
    verdict.write_bytes(DAMAGES[damage](verdict.read_bytes()))
    store = DatasetStore(tmp_path)

    take_night(tmp_path, MONDAY, "3")
    take_night(tmp_path, TUESDAY)
    store.write_card(lambda current, verdicts: card_bytes("stories", current, verdicts))
    gone = store.retain(KEEP_NOTHING, NOON + days(300))

    assert [(run.label, run.run) for run in read_current(tmp_path).runs] == [(MONDAY, "3"), (TUESDAY, "1")]
    [row] = [line for line in (tmp_path / "README.md").read_text().splitlines() if "| unknown |" in line]
    assert f"{MONDAY}/1/_meta/verdict-0001.json cannot be read" in row
    assert "the card says so" in caplog.text
    assert gone == []


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE])
@pytest.mark.parametrize("name", [names.CURRENT, f"_runs/{MONDAY}/1/{names.verdict(1)}"])
def test_a_file_that_the_machine_cannot_read_is_not_damaged(
    tmp_path: Path, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = take_night(tmp_path, MONDAY)
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path == tmp_path / name:
            raise OSError(number, os.strerror(number))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)

    with pytest.raises(FileUnreadable, match=os.strerror(number)):
        DatasetStore(tmp_path).judge(replace(night.verdict(), generation=2))


def test_rows_that_the_machine_cannot_read_are_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_night(tmp_path, MONDAY)

    def fail(path: Path) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr("storage.dataset.reading.pq.read_schema", fail)

    with pytest.raises(FileUnreadable, match="too many open files"):
        open_dataset(tmp_path)


def test_a_folder_in_the_place_of_a_file_is_damage(tmp_path: Path) -> None:
    (tmp_path / names.CURRENT).mkdir()

    with pytest.raises(FileDamaged, match="directory"):
        read_current(tmp_path)
