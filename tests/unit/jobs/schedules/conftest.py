"""An office per test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.jobs.schedules.office import Office


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    made = Office(tmp_path)
    yield made
    made.repository.check_integrity()
    made.repository.close()


@pytest.fixture
def noon(office: Office, monkeypatch: pytest.MonkeyPatch) -> Office:
    """An office whose database has the clock of the test."""
    office.write("in/a.parquet", "one")
    monkeypatch.setattr(office.repository, "clock", lambda: office.now.timestamp())
    return office
