"""A disk that is nearly full is said to be so once, and forgotten when there is room."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.disk import LEAST_BYTES, DiskWatch, free_bytes

OUT, OTHER = Path("/out"), Path("/other")


def test_below_the_reserve_there_is_no_room_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    free = {OUT: 99, OTHER: 100}
    disk = DiskWatch(100, free.__getitem__)

    looks = [disk.has_room(OUT), disk.has_room(OUT), disk.has_room(OTHER)]

    assert looks == [False, False, True]
    assert disk.short_of() == [OUT]
    assert caplog.text.count("disk_low path=/out reserve=100") == 1


def test_with_room_again_nothing_is_remembered(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    free = {OUT: 0}
    disk = DiskWatch(100, free.__getitem__)
    disk.has_room(OUT)
    free[OUT] = 100

    assert disk.short_of() == []

    assert disk.has_room(OUT)
    assert caplog.text.count("disk_has_room path=/out") == 1


def test_a_write_that_failed_asks_for_some_room_even_without_a_reserve() -> None:
    free = {OUT: LEAST_BYTES - 1}
    disk = DiskWatch(0, free.__getitem__)
    assert disk.has_room(OUT)

    disk.is_full(OUT)

    assert disk.short_of() == [OUT]
    free[OUT] = LEAST_BYTES
    assert disk.short_of() == []


def test_a_disk_that_cannot_be_asked_is_no_reason_to_wait() -> None:
    def gone(path: Path) -> int:
        raise OSError(5, "gone")

    assert DiskWatch(100, gone).has_room(OUT)


def test_the_room_of_a_directory_that_is_still_to_be_made_is_that_of_its_parent(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") > 0
