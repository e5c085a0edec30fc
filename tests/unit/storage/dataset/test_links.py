"""A data set may be reached through a link; below it there is none, and nothing outside is read or removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from storage.dataset import names
from storage.dataset.current import read_current
from storage.dataset.reading import open_dataset
from storage.dataset.retention import Retention
from storage.dataset.store import DatasetStore
from storage.errors import FileDamaged, NotLocal
from tests.unit.storage.dataset.samples import NOON, days, publish_night, take_night

MONDAY, TUESDAY = "2026-11-23", "2026-11-24"
KEEP_NOTHING = Retention(keep_runs=0, keep_days=None, keep_failed=days(0), grace=days(0))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_data_set_that_is_a_link_is_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    dataset = tmp_path / "stories"
    dataset.symlink_to(tmp_path / "disk")

    take_night(dataset, MONDAY, "1")
    take_night(dataset, MONDAY, "2", rows=3)
    gone = DatasetStore(dataset).retain(KEEP_NOTHING, NOON + days(1))

    assert gone == [(MONDAY, "1")]
    assert open_dataset(dataset).count_rows() == 3
    DatasetStore(dataset).check_integrity()


@pytest.mark.parametrize("step", ["", f"/{MONDAY}", f"/{MONDAY}/1"])
def test_a_run_behind_a_link_is_refused_and_retention_removes_nothing_there(tmp_path: Path, step: str) -> None:
    inside, outside = tmp_path / f"stories/_runs{step}", tmp_path / f"elsewhere/_runs{step}"
    take_night(tmp_path / "elsewhere", MONDAY, "1", accepted=False)
    inside.parent.mkdir(parents=True)
    inside.symlink_to(outside)
    before = files_of(tmp_path / "elsewhere")
    store = DatasetStore(tmp_path / "stories")

    gone = store.retain(KEEP_NOTHING, NOON + days(300))
    with pytest.raises(FileDamaged, match="is a link"):
        store.run_folder(MONDAY, "1")

    assert gone == []
    assert files_of(tmp_path / "elsewhere") == before


def test_a_link_to_another_run_does_not_let_retention_remove_that_one(tmp_path: Path) -> None:
    take_night(tmp_path, MONDAY, "1")
    (tmp_path / "_runs" / TUESDAY).symlink_to(tmp_path / "_runs" / MONDAY)

    gone = DatasetStore(tmp_path).retain(KEEP_NOTHING, NOON + days(300))

    assert gone == []
    DatasetStore(tmp_path).check_integrity()


def test_nothing_is_put_away_through_a_link(tmp_path: Path) -> None:
    dataset, elsewhere = tmp_path / "stories", tmp_path / "elsewhere"
    take_night(dataset, MONDAY, "1", accepted=False)
    elsewhere.mkdir()
    (dataset / names.REMOVED).symlink_to(elsewhere)

    with pytest.raises(FileDamaged, match="is a link; remove it"):
        DatasetStore(dataset).retain(KEEP_NOTHING, NOON + days(300))

    assert (dataset / "_runs" / MONDAY / "1").is_dir()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("link", [f"_runs/{MONDAY}", f"_runs/{MONDAY}/1", f"_runs/{MONDAY}/1/data"])
def test_rows_behind_a_link_out_of_the_data_set_are_not_read(tmp_path: Path, link: str) -> None:
    dataset = tmp_path / "stories"
    take_night(dataset, MONDAY)
    (dataset / link).rename(tmp_path / "elsewhere")
    (dataset / link).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(FileDamaged, match="does not stay inside"):
        open_dataset(dataset)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"2026-11-23": {', '"..": {'),
        ('"run": "1"', '"run": "../x"'),
        ("2026-11-23/1/data", "2026-11-23/1/../../../data"),
        ("_runs/2026-11-23/1/data", "/etc"),
        ('"replaced": []', '"replaced": [{"label": "..", "run": "1", "at": "2026-11-23T00:00:00+00:00"}]'),
    ],
)
def test_what_is_current_names_nothing_outside_its_runs(tmp_path: Path, old: str, new: str) -> None:
    take_night(tmp_path, MONDAY)
    path = tmp_path / names.CURRENT
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    json.loads(path.read_text())

    with pytest.raises(FileDamaged, match=r"current\.json cannot be read"):
        read_current(tmp_path)


@pytest.mark.parametrize("address", ["s3://bucket/stories", "gs://bucket/stories", "file:///stories"])
def test_object_storage_is_refused_by_name(address: str) -> None:
    with pytest.raises(NotLocal, match="object storage are not supported yet"):
        read_current(Path(address))


def test_a_run_is_not_published_behind_a_link(tmp_path: Path) -> None:
    night = publish_night(tmp_path / "elsewhere", MONDAY)
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories/_runs").symlink_to(tmp_path / "elsewhere/_runs")

    with pytest.raises(FileDamaged, match="is a link"):
        DatasetStore(tmp_path / "stories").judge(night.verdict())

    assert not (tmp_path / "elsewhere/_runs" / MONDAY / "1" / names.verdict(1)).exists()
