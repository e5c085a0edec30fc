"""How foreign errors reach the rest of the program, and that no secret travels with them."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
import sqlalchemy as sa

from storage import migrate
from storage.database import Database, now
from storage.errors import DatabaseDown, FileDamaged, StorageError
from storage.repository import Repository

CLOSED = "postgresql://nightmill:s3cret@127.0.0.1:1/jobs"  # nothing listens on port 1


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/nightmill.db"
    migrate.upgrade(url)
    return url


def test_an_unreachable_database_is_named_without_its_password() -> None:
    with pytest.raises(DatabaseDown, match=r"nightmill:.*@127\.0\.0\.1:1/jobs does not answer") as caught:
        Repository(CLOSED)

    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_missing_file_is_not_made_by_opening_it(tmp_path: Path) -> None:
    with pytest.raises(DatabaseDown, match=r"no database file .*gone\.db; run `nightmill db upgrade`"):
        Repository(f"sqlite:///{tmp_path}/gone.db")

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "photo.db"
    path.write_bytes(b"not a database at all" * 100)

    with pytest.raises(FileDamaged, match="file is not a database"):
        Repository(f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://u:s3cret@host/db", "'mysql' are not supported"),
        ("sqlite://", "in-memory"),
        ("sqlite:///:memory:", "in-memory"),
        ("s3cret words", "cannot be parsed"),
        ("postgresql://u:s3cret@host:port/db", "cannot be parsed"),
        ("postgresql://u@127.0.0.1:1/db?password=s3cret", "does not answer"),
    ],
)
def test_an_address_that_cannot_work_is_refused_without_repeating_it(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        Repository(url)

    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_sqlite_keeps_what_it_acknowledged_and_checks_references(url: str) -> None:
    database = Database(url)

    with database.read() as conn:
        pragmas = {name: conn.exec_driver_sql(f"PRAGMA {name}").scalar() for name in PRAGMAS}

    database.close()
    assert pragmas == PRAGMAS


def test_the_database_clock_is_unix_time_and_moves(url: str) -> None:
    database = Database(url)
    python_time = sa.literal_column("strftime('%s', 'now')")

    with database.read() as conn:
        ours, whole = conn.execute(sa.select(now(), python_time)).one()

    database.close()
    assert 0 <= ours - int(whole) < 1.001


def test_a_transaction_that_raises_leaves_nothing(url: str) -> None:
    database = Database(url)

    def half_done() -> None:
        with database.write() as conn:
            columns = "id, boot_id, model_key, model_source, device, state, started_at, heartbeat_at"
            conn.exec_driver_sql(f"INSERT INTO workers ({columns}) VALUES ('w', 'b', 'k', 's', 'cpu', 'ready', 0, 0)")
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        half_done()

    with database.read() as conn:
        assert conn.exec_driver_sql("SELECT count(*) FROM workers").scalar() == 0
    database.close()


def test_values_of_a_failed_statement_are_hidden(url: str) -> None:
    database = Database(url)
    row = {"id": "w", "boot_id": "s3cret"}

    with pytest.raises(sa.exc.IntegrityError) as caught, database.write() as conn:
        conn.execute(sa.text("INSERT INTO workers (id, boot_id) VALUES (:id, :boot_id)"), row)

    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    database.close()


PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000}


def test_a_full_disk_is_told_and_leaves_what_was_there(url: str) -> None:
    database = Database(url)
    with database.write() as conn:
        pages = conn.exec_driver_sql("PRAGMA page_count").scalar_one()
        conn.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")

    with pytest.raises(DatabaseDown, match=r"disk of the database .* is full; make room"), database.write() as conn:
        conn.exec_driver_sql("CREATE TABLE large AS SELECT zeroblob(100000)")

    with database.read() as conn:
        assert conn.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
        assert conn.exec_driver_sql("SELECT count(*) FROM sqlite_master WHERE name = 'large'").scalar_one() == 0
    database.close()
