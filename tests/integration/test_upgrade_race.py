"""Two processes that upgrade one database at once, as two workers of a new version would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from storage import migrate

pytestmark = pytest.mark.integration

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
