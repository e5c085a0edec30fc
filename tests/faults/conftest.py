"""A harness per test, on SQLite unless the test asks for PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Harness


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    with Harness.create(tmp_path) as started:
        yield started


@pytest.fixture
def harness_on_postgres(tmp_path: Path, postgres_url: str) -> Iterator[Harness]:
    with Harness.create(tmp_path, postgres_url) as started:
        yield started
