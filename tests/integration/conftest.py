"""A model small enough to be made on the spot, and the program that runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.broker import PrivateBroker
from tests.fakes import make_fake_model
from tests.integration.program import Program


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake model, with one token per byte and a context of 32 tokens."""
    return make_fake_model(tmp_path_factory.mktemp("tiny") / "model", max_model_len=32)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Valkey of its own on a Unix socket, as in embedded mode."""
    server = PrivateBroker(tmp_path_factory.mktemp("broker"))
    server.start()
    yield server.url
    server.stop()
