"""Workers on a terminal and in a pipe, and whom a drain may name."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import place
from jobs.cli import crew, terminal
from jobs.exits import UsageError
from jobs.settings import Settings
from storage.records import WorkerRecord

RECORD = WorkerRecord(
    id="gpu0@a",
    boot_id="b",
    model_key="k",
    model_source="org/model",
    device="GPU-8a5c",
    state="ready",
    heartbeat_age=1.25,
    loop_age=0.5,
    notice="no room on the disk",
)


class FakeSql:
    def __init__(self) -> None:
        self.asked: list[str | None] = []

    def workers(self, max_age_seconds: float | None) -> list[WorkerRecord]:
        return [RECORD]

    def request_drain(self, worker_id: str | None, max_age_seconds: float) -> list[str]:
        self.asked.append(worker_id)
        return ["gpu0@a"] if worker_id in (None, "gpu0@a") else []


@pytest.fixture
def sql(monkeypatch: pytest.MonkeyPatch) -> FakeSql:
    made = FakeSql()
    found: dict[str, Any] = {"settings": Settings(broker_url="redis://b", database_url="postgresql://d")}
    monkeypatch.setattr(place, "find", lambda: SimpleNamespace(repository=lambda: nullcontext(made), **found))
    return made


@pytest.mark.usefixtures("sql")
def test_workers_are_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")

    crew.workers()

    shown = capsys.readouterr().out
    assert "heartbeat_age" in shown
    assert all(text in shown for text in ("gpu0@a", "1.250", "0.500", "no room on the disk"))


@pytest.mark.usefixtures("sql")
def test_workers_are_json_lines_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal, "is_terminal", lambda: False)

    crew.workers()

    told = json.loads(capsys.readouterr().out)
    assert (told["worker"], told["loop_age"], told["step_age"]) == ("gpu0@a", 0.5, None)


def test_a_drain_names_one_worker_or_all(sql: FakeSql) -> None:
    crew.drain("gpu0@a")
    crew.drain(None, all_=True)

    assert sql.asked == ["gpu0@a", None]
    for worker, everybody in ((None, False), ("gpu0@a", True)):
        with pytest.raises(UsageError, match="name one worker, or --all"):
            crew.drain(worker, all_=everybody)
    with pytest.raises(UsageError, match="no live worker is called gpu9@z"):
        crew.drain("gpu9@z")


def test_in_embedded_mode_there_is_nobody_to_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "find", lambda: SimpleNamespace(settings=Settings()))

    with pytest.raises(UsageError, match="belongs to its submit"):
        crew.drain("cpu0@a")
