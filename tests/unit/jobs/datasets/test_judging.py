"""A run is judged by its own files and beside what is current; what only the machine is to blame for is tried again."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.datasets.terms import DatasetTerms
from storage import failpoints, layout
from storage.errors import FileUnreadable
from tests.unit.jobs.datasets.world import MONDAY, TUESDAY, Dying, World


def test_a_run_whose_columns_have_other_types_than_the_current_ones_is_refused(world: World) -> None:
    world.settle(*world.publish(MONDAY, rows=1, score=[1.5]), DatasetTerms())
    night, job = world.publish(TUESDAY, rows=1, score=["high"])

    settled = world.settle(night, job, DatasetTerms())

    assert settled.reason == f"columns: the column score is string here and double in the run of {MONDAY}"
    assert world.current() == {MONDAY: "1"}


def test_a_run_whose_taking_in_was_interrupted_is_compared_with_what_is_current_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    night, job = world.publish(MONDAY, rows=1, score=[1.5])
    with monkeypatch.context() as patch:
        patch.setattr(failpoints, "_armed", SimpleNamespace(points={"settle.after_verdict": Dying()}))
        with pytest.raises(KeyboardInterrupt):
            world.settle(night, job, DatasetTerms(min_success_rate=0.5))
    world.settle(*world.publish(TUESDAY, rows=1, score=["high"]), DatasetTerms())

    settled, again = (world.settle(night, job, DatasetTerms()) for _ in range(2))

    assert settled.reason == f"columns: the column score is double here and string in the run of {TUESDAY}"
    assert [(gate.name, gate.passed) for gate in settled.gates] == [("columns", False), ("min_success_rate", True)]
    assert again == settled
    assert world.current() == {TUESDAY: "1"}
    assert f"| {MONDAY} | 1 | 7 | refused |" in (world.dataset / "README.md").read_text()


@pytest.mark.parametrize("order", [(None, "high"), ("high", None)])
def test_a_column_that_holds_nothing_fits_any_type(world: World, order: tuple[str | None, ...]) -> None:
    nights = zip((MONDAY, TUESDAY), order, strict=True)

    settled = [world.settle(*world.publish(label, rows=1, score=[score]), DatasetTerms()) for label, score in nights]

    assert [each.published for each in settled] == [True, True]


def test_damage_of_another_label_is_no_fault_of_tonight(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.settle(*world.publish(MONDAY), DatasetTerms())
    (world.dataset / "_runs" / MONDAY / "1" / layout.part(layout.DATA, 0)).write_bytes(b"PAR1")

    settled = world.settle(*world.publish(TUESDAY), DatasetTerms())

    assert settled.published
    assert f"the columns of the run of {MONDAY} are not compared" in caplog.text


@pytest.mark.parametrize("file", ["part", "small"])
def test_trouble_of_the_machine_with_a_file_is_no_damage(
    world: World, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    night, job = world.publish()
    with monkeypatch.context() as patch:
        stale = OSError(errno.ESTALE, "stale file handle")
        seam = {"part": "storage.parquet.sealed.pq.ParquetFile", "small": "pathlib.Path.read_bytes"}[file]
        patch.setattr(seam, raising(stale))
        with pytest.raises(FileUnreadable, match="stale"):
            world.settle(night, job, DatasetTerms())

    assert world.settle(night, job, DatasetTerms()).published


def raising(error: Exception) -> Any:
    def call(*_: Any, **__: Any) -> None:
        raise error

    return call


def test_a_label_may_change_the_types_of_its_own_columns_when_it_is_made_again(world: World) -> None:
    world.settle(*world.publish(MONDAY, "1", rows=1, score=[1.5]), DatasetTerms())

    settled = world.settle(*world.publish(MONDAY, "2", rows=1, score=["high"]), DatasetTerms())

    assert settled.published
    assert world.current() == {MONDAY: "2"}
