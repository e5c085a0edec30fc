"""The conformance suite on SQLite."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import migrate
from storage.repository import Repository
from tests.conformance.control import *  # noqa: F403
from tests.conformance.crew import *  # noqa: F403
from tests.conformance.damage import *  # noqa: F403
from tests.conformance.deadlines import *  # noqa: F403
from tests.conformance.history import *  # noqa: F403
from tests.conformance.jobs import *  # noqa: F403
from tests.conformance.parallel import *  # noqa: F403
from tests.conformance.redeclared import *  # noqa: F403
from tests.conformance.retries import *  # noqa: F403
from tests.conformance.runs import *  # noqa: F403
from tests.conformance.schedules import *  # noqa: F403
from tests.conformance.schema import *  # noqa: F403
from tests.conformance.segments import *  # noqa: F403
from tests.conformance.shards import *  # noqa: F403
from tests.conformance.suspects import *  # noqa: F403


@pytest.fixture(scope="module")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def empty_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/nightmill.db"


@pytest.fixture
def repository(migrated_file: Path, tmp_path: Path) -> Iterator[Repository]:
    shutil.copy(migrated_file, tmp_path / "nightmill.db")
    repository = Repository(f"sqlite:///{tmp_path}/nightmill.db")
    yield repository
    repository.close()
