"""Tiny models are made once per run and family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.equivalence.subjects import Subject, SubjectOf
from tests.equivalence.tiny import make_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = make_model(family, tmp_path_factory.mktemp(family))
        return made[family]

    return get


@pytest.fixture(scope="module")
def subject(tiny_model: Callable[[str], Path]) -> SubjectOf:
    """A family, loaded once, with the answers to hold it to."""
    known: dict[str, Subject] = {}

    def get(family: str) -> Subject:
        if family not in known:
            known[family] = Subject.of(tiny_model(family))
        return known[family]

    return get
