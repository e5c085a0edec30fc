"""Two processes that upgrade one database at once, as two workers of a new version would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storage import migrate

pytestmark = pytest.mark.integration

LIST_JOBS = """
from jobs import place
with place.find().repository() as repository:
    assert repository.list_jobs() == []
"""
UPGRADE = "import sys; from storage import migrate; migrate.upgrade(sys.argv[1])"


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/nightmill.db"
    return str(request.getfixturevalue("postgres_url"))


def test_both_succeed_and_one_does_the_work(empty_url: str) -> None:
    command = [sys.executable, "-c", UPGRADE, empty_url]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]

    errors = [process.communicate(timeout=120)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0], errors
    assert migrate.current(empty_url) == migrate.head()


def test_the_first_commands_of_a_new_home_never_see_half_a_database(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTMILL_")}
    command = [sys.executable, "-c", LIST_JOBS]
    processes = [
        subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**environment, "NIGHTMILL_HOME": str(tmp_path / "home")}
        )
        for _ in range(4)
    ]

    errors = [process.communicate(timeout=120)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0, 0], errors
    assert [path.name for path in (tmp_path / "home").iterdir() if path.suffix == ".tmp"] == []
