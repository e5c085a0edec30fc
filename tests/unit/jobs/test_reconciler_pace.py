"""When the loop ticks: after its pause, and sooner where there is something new."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs.reconciler import QUIET_SECONDS, REST_SHARE, Reconciler
from jobs.settings import Settings
from tests.unit.jobs.test_reconciler import FakeSql

PAUSE = 1000.0
TICK_SECONDS = 0.125


@dataclass
class Hours:
    """A clock, and the event that stops the loop at its `end`: who waits for it lets the time pass."""

    end: float
    now: float = 0.0
    planned: dict[float, Callable[[], object]] = field(default_factory=dict)  # what others do, and when

    def monotonic(self) -> float:
        return self.now

    def is_set(self) -> bool:
        return self.now >= self.end

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        for at in [at for at in self.planned if at <= self.now]:
            self.planned.pop(at)()
        return self.is_set()


@dataclass
class TimedDispatcher:
    """Notes when each tick came to its end."""

    hours: Hours
    ticks: list[float] = field(default_factory=list)

    def fill(self) -> int:
        self.hours.now += TICK_SECONDS
        self.ticks.append(self.hours.now)
        return 0


def loop(hours: Hours, file: Path | None = None) -> tuple[Reconciler, TimedDispatcher]:
    dispatcher, sql = TimedDispatcher(hours), FakeSql(free=False, file=file)
    settings = Settings(reconcile_seconds=PAUSE)
    return Reconciler(settings, sql, dispatcher, monotonic=hours.monotonic), dispatcher  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nightmill.db"


@pytest.fixture
def write(file: Path) -> Iterator[Callable[[], object]]:
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("CREATE TABLE notes (n INTEGER)")
        yield lambda: other.execute("INSERT INTO notes VALUES (1)")


def test_it_goes_on_at_once_when_work_beside_it_has_ended() -> None:
    hours = Hours(end=100.0)
    made, dispatcher = loop(hours)
    hours.planned[50.0] = made._hurry.set

    made.run(hours)  # type: ignore[arg-type]

    assert dispatcher.ticks == pytest.approx([TICK_SECONDS, 50.0 + TICK_SECONDS], abs=0.2)


def test_it_goes_on_when_somebody_wrote_to_the_database(file: Path, write: Callable[[], object]) -> None:
    hours = Hours(end=4.5, planned={2.0: write})
    made, dispatcher = loop(hours, file)

    made.run(hours, on_change=True)  # type: ignore[arg-type]

    assert dispatcher.ticks == pytest.approx([TICK_SECONDS, 2.0 + TICK_SECONDS], abs=0.2)


def test_however_much_is_written_it_rests_for_some_times_what_a_tick_took(
    file: Path, write: Callable[[], object]
) -> None:
    hours = Hours(end=4.5, planned={n / 10: write for n in range(1, 45)})
    made, dispatcher = loop(hours, file)

    made.run(hours, on_change=True)  # type: ignore[arg-type]

    spaces = [after - before for before, after in zip(dispatcher.ticks, dispatcher.ticks[1:], strict=False)]
    assert len(spaces) >= 3
    assert min(spaces) >= (1 + REST_SHARE) * TICK_SECONDS - 1e-9


def test_it_goes_on_when_nobody_wrote_for_long(file: Path, write: Callable[[], object]) -> None:
    hours = Hours(end=2.5 * QUIET_SECONDS)
    made, dispatcher = loop(hours, file)

    made.run(hours, on_change=True)  # type: ignore[arg-type]

    assert len(dispatcher.ticks) == 3


def test_real_mode_heeds_its_pause_alone(file: Path, write: Callable[[], object]) -> None:
    hours = Hours(end=100.0, planned={2.0: write})
    made, dispatcher = loop(hours, file)

    made.run(hours)  # type: ignore[arg-type]

    assert dispatcher.ticks == [TICK_SECONDS]
