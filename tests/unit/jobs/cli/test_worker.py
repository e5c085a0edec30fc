"""What `nightmill worker` is told reaches the process that serves, on a GPU as well."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import launcher, worker
from jobs.cli.frame import main
from jobs.launcher import worker_command
from jobs.settings import Settings


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What would have been started."""
    caught: dict[str, Any] = {}

    def start(settings: Settings, **options: Any) -> int:
        caught.update(options, dtype=settings.dtype)
        return 0

    monkeypatch.setattr(worker, "run_worker", start)
    monkeypatch.setattr(launcher, "run_launcher", start)
    monkeypatch.delenv("NIGHTMILL_DTYPE", raising=False)
    return caught


def nightmill(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


@pytest.mark.parametrize("gpus", [[], ["--gpus", "all"]])
def test_the_whole_name_of_a_model_reaches_worker_and_launcher(seen: dict[str, Any], gpus: list[str]) -> None:
    code = nightmill("worker", "--model", "org/m", "--model-revision", "v2", "--dtype", "bfloat16", *gpus)

    assert code == 0
    assert (seen["model"], seen["revision"], seen["dtype"]) == ("org/m", "v2", "bfloat16")


def test_a_child_of_the_launcher_is_told_model_and_revision_and_understands_them(
    seen: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = worker_command("gpu0", "org/m", "v2")

    worker.main(command[command.index("jobs.worker") + 1 :])

    assert command[0] == sys.executable
    assert (seen["name"], seen["model"], seen["revision"]) == ("gpu0", "org/m", "v2")


@pytest.mark.parametrize(
    "flags", [["--dtype", "bfloat16"], ["--model-revision", "v2"], ["--model", "m", "--dtype", "x"]]
)
def test_a_revision_or_type_that_cannot_be_honoured_is_a_usage_error(seen: dict[str, Any], flags: list[str]) -> None:
    assert nightmill("worker", *flags) == 2
    assert seen == {}


def test_a_worker_without_an_owner_ends_with_8_and_says_what_starts_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path))
    monkeypatch.delenv("NIGHTMILL_BROKER_URL", raising=False)
    monkeypatch.delenv("NIGHTMILL_DATABASE_URL", raising=False)

    assert worker.main([]) == 8
    assert capsys.readouterr().err.startswith(f"nightmill worker: nothing runs in {tmp_path}")
