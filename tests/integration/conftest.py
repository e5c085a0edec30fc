"""A model small enough to be made on the spot, and the program that runs it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobs.broker import PrivateBroker
from jobs.cli import main
from tests.fakes import make_fake_model
from tests.integration.program import Program


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture
def call(
    program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`program.nightmill` for commands that start nothing: in this process, which has imported everything already."""

    def call_here(*arguments: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(program.folder)
            for name, value in program.environment.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main(arguments)
        return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), *capsys.readouterr())

    return call_here


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
