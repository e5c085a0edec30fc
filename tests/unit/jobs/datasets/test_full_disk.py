"""A disk that is full in the middle of settling: nothing half-written stays, and settling again makes all good."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from jobs.datasets.terms import DatasetTerms
from storage.dataset.store import DatasetStore
from tests.unit.jobs.datasets.world import MONDAY, TUESDAY, World

WRITES = ("verdict-0001.json", "current.json", "README.md")
"""What settling writes, in its order."""


@pytest.mark.parametrize("name", WRITES)
def test_settling_again_makes_good_what_a_full_disk_has_prevented(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.settle(*world.publish(MONDAY), DatasetTerms())
    night, job = world.publish(TUESDAY)
    write = Path.write_bytes

    def fill(path: Path, content: bytes) -> int:
        if name not in path.name:
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fill)
        if name == "README.md":  # the run has come in: nothing takes that back
            assert world.settle(night, job, DatasetTerms()).published
        else:
            with pytest.raises(OSError, match="no space left"):
                world.settle(night, job, DatasetTerms())
            assert world.current() == {MONDAY: "1"}

    settled = world.settle(night, job, DatasetTerms())

    assert settled.published
    assert world.current() == {MONDAY: "1", TUESDAY: "1"}
    assert f"| {TUESDAY} | 1 | 7 | current |" in (world.dataset / "README.md").read_text()
    assert not list(world.dataset.rglob("*.tmp"))
    DatasetStore(world.dataset).check_integrity()
