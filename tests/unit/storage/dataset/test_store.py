"""The owner of a data set: what is current, in which order verdicts count, and what retention may take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from storage import layout
from storage.dataset import names
from storage.dataset.current import Current, CurrentRun, read_current
from storage.dataset.reading import open_dataset
from storage.dataset.retention import Retention
from storage.dataset.store import DatasetStore
from storage.durable import write_atomic
from storage.errors import DatasetBusy, FileDamaged, NoSuchDataset
from storage.parquet.generations import collect
from tests.unit.storage.dataset.samples import NOON, days, publish_night, take_night

MONDAY, TUESDAY, WEDNESDAY = "2026-11-23", "2026-11-24", "2026-11-25"
KEEP_NOTHING = Retention(keep_runs=0, keep_days=None, keep_failed=days(7), grace=days(1))


def runs_of(dataset: Path) -> dict[str, str]:
    return {run.label: run.run for run in read_current(dataset).runs}


def test_a_data_set_without_a_current_run_is_told_apart_from_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(NoSuchDataset, match="no current run yet"):
        read_current(tmp_path)

    (tmp_path / names.CURRENT).write_text('{"schema_version": 1}')

    with pytest.raises(FileDamaged, match=r"current\.json"):
        read_current(tmp_path)


def test_each_label_has_one_current_run_and_rows_carry_their_label(tmp_path: Path) -> None:
    take_night(tmp_path, TUESDAY, rows=4)
    take_night(tmp_path, MONDAY, rows=3)

    table = open_dataset(tmp_path).to_table()

    assert runs_of(tmp_path) == {MONDAY: "1", TUESDAY: "1"}
    assert read_current(tmp_path).as_bytes() == (tmp_path / names.CURRENT).read_bytes()
    assert sorted(set(table["dt"].to_pylist())) == [MONDAY, TUESDAY]
    assert table["dt"].to_pylist().count(TUESDAY) == 4
    DatasetStore(tmp_path).check_integrity()


def test_a_later_run_of_a_label_replaces_the_earlier_one_which_stays_on_disk(tmp_path: Path) -> None:
    take_night(tmp_path, MONDAY, "1")

    take_night(tmp_path, MONDAY, "2", at=NOON + days(1))

    assert runs_of(tmp_path) == {MONDAY: "2"}
    assert [(left.label, left.run, left.at) for left in read_current(tmp_path).replaced] == [
        (MONDAY, "1", NOON + days(1))
    ]
    assert (tmp_path / "_runs" / MONDAY / "1/manifest.json").exists()


def test_taking_a_run_again_changes_nothing(tmp_path: Path) -> None:
    night = take_night(tmp_path, MONDAY)
    store, before = DatasetStore(tmp_path), (tmp_path / names.CURRENT).read_bytes()

    taken = store.take(store.judge(night.verdict()), NOON + days(3))

    assert taken
    assert (tmp_path / names.CURRENT).read_bytes() == before


def test_a_run_that_was_judged_before_the_current_one_does_not_come_back(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path)
    slow = store.judge(publish_night(tmp_path, MONDAY, "slow").verdict())
    take_night(tmp_path, MONDAY, "fast", at=NOON - days(5))  # by a clock that was set back

    taken = store.take(slow, NOON)

    assert not taken
    assert runs_of(tmp_path) == {MONDAY: "fast"}


def test_the_first_verdict_on_a_generation_stands(tmp_path: Path) -> None:
    store, night = DatasetStore(tmp_path), publish_night(tmp_path, MONDAY)
    first = store.judge(night.verdict(accepted=False))

    again = store.judge(night.verdict(accepted=True, at=NOON + days(1)))

    assert again == first
    assert not again.accepted


def test_a_run_that_was_refused_can_be_taken_in_as_its_next_generation() -> None:
    first = Current()
    refused_and_retried = monday_run(order=1, generation=2)

    taken = first.taking(refused_and_retried)

    assert taken.runs == (refused_and_retried,)
    assert taken.taking(monday_run(order=1, generation=1)) is taken


def monday_run(order: int, generation: int) -> CurrentRun:
    return CurrentRun(
        label=MONDAY,
        run="1",
        order=order,
        generation=generation,
        rows=0,
        manifest_sha256="0",
        files=(),
        since=NOON,
    )


def test_retention_takes_what_was_replaced_long_ago_and_nothing_that_is_current(tmp_path: Path) -> None:
    take_night(tmp_path, MONDAY, "1", at=NOON - days(9))
    take_night(tmp_path, MONDAY, "2", at=NOON - days(2))
    take_night(tmp_path, TUESDAY, "1", at=NOON - days(8))
    store = DatasetStore(tmp_path)

    gone = store.retain(KEEP_NOTHING, NOON)

    assert gone == [(MONDAY, "1")]
    assert not (tmp_path / "_runs" / MONDAY / "1").exists()
    assert not (tmp_path / names.REMOVED).exists()
    assert read_current(tmp_path).replaced == ()
    assert runs_of(tmp_path) == {MONDAY: "2", TUESDAY: "1"}
    store.check_integrity()


def test_what_was_current_lately_stays_for_its_readers(tmp_path: Path) -> None:
    take_night(tmp_path, MONDAY, "1", at=NOON - days(90))
    take_night(tmp_path, MONDAY, "2", at=NOON)  # the first one is old, but it was read until now
    store = DatasetStore(tmp_path)

    early, late = store.retain(KEEP_NOTHING, NOON + days(0.9)), store.retain(KEEP_NOTHING, NOON + days(1.1))

    assert early == []
    assert late == [(MONDAY, "1")]


def test_what_was_refused_stays_for_its_own_time(tmp_path: Path) -> None:
    take_night(tmp_path, MONDAY, accepted=False)
    store = DatasetStore(tmp_path)

    early, late = store.retain(KEEP_NOTHING, NOON + days(6.9)), store.retain(KEEP_NOTHING, NOON + days(7.1))

    assert early == []
    assert late == [(MONDAY, "1")]


def test_a_run_whose_rows_run_again_is_not_removed(tmp_path: Path) -> None:
    take_night(tmp_path, MONDAY, accepted=False)
    (tmp_path / "_runs" / MONDAY / "1/_inprogress-0002").mkdir()

    gone = DatasetStore(tmp_path).retain(KEEP_NOTHING, NOON + days(30))

    assert gone == []


def test_a_run_without_a_verdict_is_not_removed(tmp_path: Path) -> None:
    publish_night(tmp_path, MONDAY)

    gone = DatasetStore(tmp_path).retain(KEEP_NOTHING, NOON + days(300))

    assert gone == []


def test_a_run_that_a_crash_has_kept_from_coming_in_is_not_removed(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path)
    verdict = store.judge(publish_night(tmp_path, MONDAY).verdict())

    gone = store.retain(KEEP_NOTHING, NOON + days(300))

    assert gone == []
    assert store.take(verdict, NOON + days(300))


def test_a_change_by_somebody_without_the_lock_is_noticed(tmp_path: Path) -> None:
    take_night(tmp_path, MONDAY)
    night = publish_night(tmp_path, TUESDAY)
    store = DatasetStore(tmp_path)
    verdict = store.judge(night.verdict())

    def intrude(current: Current) -> Current:
        write_atomic(tmp_path / names.CURRENT, replace(current, revision=99).as_bytes())
        return replace(current, revision=5)

    with pytest.raises(DatasetBusy, match="does not hold"), store._locked():
        store._replace(intrude)

    assert read_current(tmp_path).revision == 99
    assert store.take(verdict, NOON)


def test_a_data_set_that_stays_locked_is_said_to_be_busy(tmp_path: Path) -> None:
    night = publish_night(tmp_path, MONDAY)

    with FileLock(tmp_path / names.LOCK), pytest.raises(DatasetBusy, match="by another process"):
        DatasetStore(tmp_path, lock_seconds=0.01).judge(night.verdict())


@pytest.mark.parametrize("damage", ["part", "manifest", "rows", "folder"])
def test_damage_of_what_is_current_is_found(tmp_path: Path, damage: str) -> None:
    night = take_night(tmp_path, MONDAY)
    out, current = tmp_path / "_runs" / MONDAY / night.run, tmp_path / names.CURRENT
    match damage:
        case "part":
            (out / "data/part-00000.parquet").unlink()
        case "manifest":
            (out / "_meta/manifest-0001.json").write_bytes(b"{}")
        case "rows":
            current.write_text(current.read_text().replace('"rows": 6', '"rows": 7'))
        case "folder":
            fields = json.loads(current.read_text())
            fields["replaced"] = [{"label": MONDAY, "run": night.run, "at": NOON.isoformat()}]
            current.write_text(json.dumps(fields))

    with pytest.raises(FileDamaged, match=MONDAY):
        DatasetStore(tmp_path).check_integrity()


def test_a_current_run_whose_rows_ran_again_is_whole_also_when_its_first_generation_was_collected(
    tmp_path: Path,
) -> None:
    take_night(tmp_path, MONDAY)
    out = tmp_path / "_runs" / MONDAY / "1"
    manifest = (out / layout.MANIFEST).read_bytes().replace(b'"generation": 1', b'"generation": 2')
    for name in (layout.MANIFEST, layout.manifest_generation(2)):
        (out / name).write_bytes(manifest)
    collect(out, 2)

    DatasetStore(tmp_path).check_integrity()

    assert open_dataset(tmp_path).count_rows() == 6
    (out / layout.part(layout.DATA, 0)).unlink()
    with pytest.raises(FileDamaged, match="is missing"):
        DatasetStore(tmp_path).check_integrity()
