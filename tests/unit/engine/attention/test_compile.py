"""Where compiled kernels are kept."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from engine.attention.compile import CannotCompile, cache_folder, load_kernel


@pytest.fixture
def no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of a user whose cache cannot be written."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_without_a_cache_all_processes_of_a_user_share_one_private_folder(no_home: Path) -> None:
    first = cache_folder()

    assert cache_folder() == first
    assert first.parent == no_home
    assert first.stat().st_mode & 0o077 == 0


def test_a_folder_that_others_may_write_to_is_left_alone(no_home: Path) -> None:
    open_to_all = cache_folder()
    open_to_all.chmod(0o777)

    assert cache_folder() != open_to_all


def test_a_link_is_not_followed(no_home: Path) -> None:
    name = cache_folder()
    name.rename(no_home / "elsewhere")
    name.symlink_to(no_home / "elsewhere")

    assert cache_folder() != name


def test_a_machine_without_room_for_the_kernel_has_none(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(no_home / "file"))

    with pytest.raises(CannotCompile, match="no folder for the compiled kernel"):
        load_kernel()


def test_a_kernel_that_cannot_be_written_is_no_kernel(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", full)

    with pytest.raises(CannotCompile, match=r"cannot be written to .*: .*No space left"):
        load_kernel()
