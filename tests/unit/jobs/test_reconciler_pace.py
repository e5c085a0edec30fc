"""When the loop ticks: after its pause, and sooner where there is something new."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from jobs import reconciler as module
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from tests.unit.jobs.test_reconciler import FakeDispatcher, FakeSql

PATIENCE = 30.0  # seconds for what happens at once on a machine that is busy


@contextmanager
def running(reconciler: Reconciler, *, on_change: bool) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=reconciler.run, args=(stop,), kwargs={"on_change": on_change})
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def ticks(dispatcher: FakeDispatcher, wanted: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while dispatcher.fills < wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return dispatcher.fills == wanted


def loop(file: Path | None = None) -> tuple[Reconciler, FakeDispatcher]:
    dispatcher = FakeDispatcher()
    sql = FakeSql(free=False, file=file)
    return Reconciler(Settings(reconcile_seconds=1000.0), sql, dispatcher), dispatcher  # type: ignore[arg-type]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[[], None]]:
    with closing(sqlite3.connect(tmp_path / "nightmill.db", isolation_level=None)) as other:
        other.execute("CREATE TABLE notes (n INTEGER)")
        yield lambda: other.execute("INSERT INTO notes VALUES (1)") and None


def test_it_goes_on_at_once_when_work_beside_it_has_ended() -> None:
    made, dispatcher = loop()

    with running(made, on_change=False):
        for fills in (1, 2):
            assert ticks(dispatcher, fills)
            made._hurry.set()
        assert ticks(dispatcher, 3)


def test_it_goes_on_when_somebody_wrote_to_the_database(
    tmp_path: Path, write: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 1000.0)
    made, dispatcher = loop(tmp_path / "nightmill.db")

    with running(made, on_change=True):
        for fills in (1, 2):
            assert ticks(dispatcher, fills)
            write()
        assert ticks(dispatcher, 3)
        time.sleep(3 * module.LOOK_SECONDS)
        assert dispatcher.fills == 3


def test_what_is_written_all_the_time_is_looked_at_now_and_then(
    tmp_path: Path, write: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REST_SHARE", 1e9)
    made, dispatcher = loop(tmp_path / "nightmill.db")

    with running(made, on_change=True):
        assert ticks(dispatcher, 1)
        write()
        time.sleep(3 * module.LOOK_SECONDS)
        assert dispatcher.fills == 1


def test_it_goes_on_when_nobody_wrote_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.05)
    made, dispatcher = loop(tmp_path / "gone.db")

    with running(made, on_change=True):
        deadline = time.monotonic() + PATIENCE
        while dispatcher.fills < 3 and time.monotonic() < deadline:
            time.sleep(0.01)

    assert dispatcher.fills >= 3
