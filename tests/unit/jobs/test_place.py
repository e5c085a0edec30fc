"""One installation, found in one way by every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import place
from jobs.exits import UsageError
from storage import migrate
from storage.errors import SchemaOutdated

BROKER, DATABASE = "NIGHTMILL_BROKER_URL", "NIGHTMILL_DATABASE_URL"


@pytest.fixture(autouse=True)
def _no_addresses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(BROKER, raising=False)
    monkeypatch.delenv(DATABASE, raising=False)


@pytest.mark.parametrize(("given", "absent"), [(BROKER, DATABASE), (DATABASE, BROKER)])
def test_one_address_alone_is_refused_and_the_other_is_named(
    monkeypatch: pytest.MonkeyPatch, given: str, absent: str
) -> None:
    monkeypatch.setenv(given, "x://y")

    with pytest.raises(UsageError, match=f"{given} is set but {absent} is not"):
        place.find()


def test_both_addresses_are_taken_and_the_password_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BROKER, "redis://host/0")
    monkeypatch.setenv(DATABASE, "postgresql://me:secret@host/db")

    found = place.find()

    assert (found.broker_url, found.settings.embedded) == ("redis://host/0", False)
    assert "secret" not in found.shown_database


@pytest.mark.parametrize(("name", "value"), [("NIGHTMILL_LEASE_SECONDS", "soon"), ("NIGHTMILL_DTYPE", "float8")])
def test_a_setting_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(UsageError, match=name):
        place.find()


def test_a_database_is_not_there_before_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found, seen = place.find(), []
    upgrade = migrate.upgrade

    def watched(url: str) -> None:
        upgrade(url)
        seen.append(found.is_new)

    monkeypatch.setattr(migrate, "upgrade", watched)

    with found.repository():
        assert seen == [True]


def test_the_first_command_of_a_machine_makes_the_database() -> None:
    found = place.find()
    assert found.is_new

    with found.repository() as repository:
        assert repository.list_jobs() == []

    assert not found.is_new
    assert migrate.current(found.database_url) == migrate.head()
    assert found.settings.home.stat().st_mode & 0o077 == 0


def test_a_state_directory_below_the_user_s_home_is_one_and_the_same_for_everybody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NIGHTMILL_HOME", "~/state")

    found = place.find()
    found.prepare()

    assert found.settings.home == tmp_path / "state"
    assert (tmp_path / "state" / "nightmill.db").exists()
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("NIGHTMILL_LEASE_SECONDS", "19", "a lease must last for two heartbeats"),
        ("NIGHTMILL_HEARTBEAT_SECONDS", "31", "a lease must last for two heartbeats"),
        ("NIGHTMILL_WORKER_SLOTS", "0", "must be 1 or more"),
        ("NIGHTMILL_SEGMENT_ROWS", "-1", "must be 1 or more"),
    ],
)
def test_settings_under_which_nothing_would_be_done_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(UsageError, match=rf"{name}.*{told}"):
        place.find()


def test_a_home_of_nobody_is_refused_by_the_name_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTMILL_HOME", "~no-such-user/state")

    with pytest.raises(UsageError, match=r"NIGHTMILL_HOME: .*~no-such-user/state"):
        place.find()


def test_an_old_database_is_never_upgraded_in_passing(tmp_path: Path) -> None:
    import sqlite3

    found = place.find()
    found.settings.home.mkdir()
    connection = sqlite3.connect(found.settings.home / "nightmill.db")
    connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    connection.close()

    with pytest.raises(SchemaOutdated), found.repository():
        pass


def test_changes_replace_settings() -> None:
    assert place.find({"max_sequences": 3}).settings.max_sequences == 3
