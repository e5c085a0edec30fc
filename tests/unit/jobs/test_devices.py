"""The folder of locks is the user's own, or it is not used."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from jobs.devices import DeviceError, lock_folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"nightmill-devices-{os.getuid()}"


def test_the_folder_is_made_for_this_user_alone_and_taken_again(folder: Path) -> None:
    assert lock_folder() == lock_folder() == folder
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_enter_is_refused_with_the_command_that_closes_it(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)

    with pytest.raises(DeviceError, match=f"chmod 700 {folder}"):
        lock_folder()


def test_another_user_s_folder_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    stranger = os.getuid() + 1
    folder.rename(folder.with_name(f"nightmill-devices-{stranger}"))
    monkeypatch.setattr(os, "getuid", lambda: stranger)

    with pytest.raises(DeviceError, match="no directory of this user"):
        lock_folder()


def test_a_link_or_a_file_in_the_place_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeviceError, match="TMPDIR"):
        lock_folder()

    folder.unlink()
    folder.touch()
    with pytest.raises(DeviceError, match="TMPDIR"):
        lock_folder()
