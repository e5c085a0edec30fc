import os
from pathlib import Path

import pytest

from storage.durable import create_exclusive, make_folder, remove_temporaries, replacing, sync_folder, write_atomic


def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def fail():
        with replacing(path) as draft:
            draft.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"file": b"old"}


def test_a_file_has_its_name_only_after_its_content_is_durable_and_its_folder_after_that(tmp_path, monkeypatch):
    path, events = tmp_path / "file", []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor):
        events.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name.split('.')[0] or 'draft'}")
        real_fsync(descriptor)

    def replace(source, target):
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)

    write_atomic(path, b"new")

    assert events == ["fsync draft", "rename", f"fsync {tmp_path.name}"]


def test_of_two_creators_one_wins_and_nothing_is_replaced(tmp_path):
    assert create_exclusive(tmp_path / "file", b"first")
    assert not create_exclusive(tmp_path / "file", b"second")

    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"first"]


def test_every_new_folder_is_made_durable_in_its_parent(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("storage.durable.sync_folder", lambda folder: (synced.append(folder), sync_folder(folder)))

    make_folder(tmp_path / "a" / "b")

    assert synced == [tmp_path, tmp_path / "a"]


def test_only_leftovers_of_killed_writers_are_removed(tmp_path):
    for name in (".file.0123.tmp", ".hidden", "file.tmp"):
        (tmp_path / name).touch()

    remove_temporaries(tmp_path)

    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".hidden", "file.tmp"]
