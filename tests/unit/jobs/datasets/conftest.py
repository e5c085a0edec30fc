from __future__ import annotations

from pathlib import Path

import pytest

from jobs.datasets import settle as module
from tests.unit.jobs.datasets.world import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path / "stories")
    monkeypatch.setattr(module, "send", made.send)
    return made
