"""A look tells what others wrote, and nothing else."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from storage import migrate
from storage.changes import Changes
from storage.database import Database

INSERT = "INSERT INTO notes VALUES (1)"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a name with spaces?.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE notes (n INTEGER)")
    return path


@pytest.fixture
def changes(file: Path) -> Iterator[Changes]:
    with Changes(file) as changes:
        assert changes.seen()
        assert not changes.seen()
        yield changes


def test_what_another_connection_writes_is_seen_once(file: Path, changes: Changes) -> None:
    with closing(sqlite3.connect(file)) as other, other:
        other.execute(INSERT)

    assert changes.seen()
    assert not changes.seen()


def test_what_another_process_writes_is_seen(file: Path, changes: Changes) -> None:
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()"
    subprocess.run([sys.executable, "-c", code, file, INSERT], check=True)

    assert changes.seen()


def test_who_only_reads_gives_up_or_changes_no_row_is_not_seen(file: Path, changes: Changes) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("SELECT * FROM notes").fetchall()
        other.execute("BEGIN IMMEDIATE")
        other.execute(INSERT)
        other.execute("ROLLBACK")
        other.execute("UPDATE notes SET n = 2 WHERE n = 1")

    assert not changes.seen()


def test_each_owner_sees_for_itself(file: Path, changes: Changes) -> None:
    with Changes(file) as second:
        second.seen()
        with closing(sqlite3.connect(file)) as other, other:
            other.execute(INSERT)

        assert changes.seen()
        assert second.seen()


def test_our_own_writes_through_the_database_are_seen(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/nightmill.db"
    migrate.upgrade(url)
    database = Database(url)
    with Changes(database.file) as changes, closing(database):
        changes.seen()
        with database.write() as conn:
            conn.exec_driver_sql("CREATE TABLE more (n INTEGER)")

        assert changes.seen()


def test_a_look_is_not_held_up_by_a_writer(file: Path, changes: Changes) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute(INSERT)

        assert not changes.seen()

        other.execute("COMMIT")
        assert changes.seen()


def test_without_a_file_there_may_always_be_something_new(tmp_path: Path) -> None:
    with Changes(None) as postgresql, Changes(tmp_path / "gone.db") as missing:
        assert [postgresql.seen(), postgresql.seen()] == [True, True]
        assert [missing.seen(), missing.seen()] == [True, True]
    assert list(tmp_path.iterdir()) == []
