"""Each problem comes with what to do, and no problem hides another."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.attention.compile import load_kernel
from jobs import doctor, place
from jobs.place import Place
from storage import migrate


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NIGHTMILL_BROKER_URL", raising=False)
    monkeypatch.delenv("NIGHTMILL_DATABASE_URL", raising=False)
    return tmp_path / "home"


def real_place(monkeypatch: pytest.MonkeyPatch, database: str) -> Place:
    monkeypatch.setenv("NIGHTMILL_BROKER_URL", "redis://:secret@127.0.0.1:1/0")
    monkeypatch.setenv("NIGHTMILL_DATABASE_URL", database)
    return place.find()


def examine(where: Place) -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.examine(where)}


def test_a_fresh_machine_is_well_and_is_left_untouched(home: Path) -> None:
    checks = examine(place.find())

    assert all(check.ok for check in checks.values()), checks
    assert "made by the first submit" in checks["database"].found
    assert not home.exists()


def test_broker_and_database_out_of_reach_are_both_told_without_their_passwords(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = examine(real_place(monkeypatch, "postgresql://me:secret@127.0.0.1:1/db"))

    assert not checks["broker"].ok
    assert not checks["database"].ok
    assert "secret" not in checks["broker"].found + checks["database"].found


def test_an_old_schema_is_told_with_its_command(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sqlite3

    connection = sqlite3.connect(tmp_path / "jobs.db")
    connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    connection.close()

    checks = examine(real_place(monkeypatch, f"sqlite:///{tmp_path}/jobs.db"))

    assert checks["database"].remedy == "run `nightmill db upgrade`"


def test_a_missing_reconciler_is_told(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    migrate.upgrade(url)

    assert examine(real_place(monkeypatch, url))["workers"].remedy == "start `nightmill reconciler`"


def test_the_path_of_attention_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._attention(load_kernel) == doctor.Check("attention", "native kernel")

    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    check = doctor._attention(load_kernel)

    assert "no C compiler found" in check.found
    assert "gcc" in str(check.remedy)


def test_a_home_that_is_no_directory_is_told(home: Path) -> None:
    home.parent.mkdir(exist_ok=True)
    home.write_text("")

    check = examine(place.find())["state directory"]

    assert "NIGHTMILL_HOME" in str(check.remedy)
