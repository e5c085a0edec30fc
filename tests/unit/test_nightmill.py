"""The public API is what was promised, and importing it costs nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import nightmill
from jobs import client
from jobs.retrying import Choice
from storage.errors import JobConflict
from tests.unit.jobs.tiny_model import make_model


def test_exported_names_are_exactly_the_promised_ones() -> None:
    assert nightmill.__all__ == [
        *("cancel", "open_dataset", "pause", "results", "resume", "retry", "stats", "status", "submit", "wait")
    ]


def test_every_exported_name_is_a_documented_function() -> None:
    for name in nightmill.__all__:
        function = getattr(nightmill, name)
        assert inspect.isfunction(function)
        assert function.__doc__


def test_nothing_else_is_public() -> None:
    public = {
        name
        for name, value in vars(nightmill).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == "nightmill"
    }

    assert public == set(nightmill.__all__)


def test_importing_it_imports_none_of_the_program() -> None:
    script = "import sys, nightmill; sys.exit(any(name.split('.')[0] in ('jobs', 'torch') for name in sys.modules))"

    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A queued job of three rows in a home of its own, of which nothing runs."""
    for name in ("NIGHTMILL_BROKER_URL", "NIGHTMILL_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path / "home"))
    pq.write_table(pa.table({"prompt": ["a", "b", "c"]}), tmp_path / "in.parquet")
    model = make_model(tmp_path / "model")
    return nightmill.submit(str(tmp_path / "in.parquet"), output=tmp_path / "OUT", model=str(model))


def test_a_job_is_paused_resumed_and_cancelled(job: int) -> None:
    states = [nightmill.pause(job)["state"], nightmill.resume(job)["state"], nightmill.cancel(job, now=True)["state"]]

    assert states == ["paused", "queued", "cancelling"]
    assert nightmill.status(job)["generation"] == 1
    assert nightmill.stats(job)["generations"] == [1]


def test_what_cannot_be_asked_of_a_job_is_refused(job: int) -> None:
    nightmill.cancel(job)

    with pytest.raises(JobConflict, match="only a paused job can be resumed"):
        nightmill.resume(job)
    with pytest.raises(JobConflict, match="only the rows of a job that has ended can run again"):
        nightmill.retry(job, status="errored")
    with pytest.raises(ValueError, match="no row is chosen"):
        nightmill.retry(job)


def test_a_retry_says_which_rows_run_again_and_how_many_they_are(job: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Choice] = []

    def retry(job_id: int, choice: Choice, *_: object) -> Any:
        asked.append(choice)
        return SimpleNamespace(plan=SimpleNamespace(record=SimpleNamespace(num_rows=2)))

    monkeypatch.setattr(client, "retry", retry)

    rows = nightmill.retry(job, status="errored", finish_reason=["length"], sampling={"max_tokens": 9})

    assert rows == 2
    [choice] = asked
    assert (choice.statuses, choice.finish_reasons) == ({"errored"}, {"length"})
    assert choice.options == {"max_tokens": 9}
