"""Ticks schedules, settles their runs and tells of them, beside a reconciler's other work."""

from __future__ import annotations

import time
from collections.abc import Callable

from jobs.background import OneAtATime
from jobs.settings import Settings
from storage.repository import Repository

STOP_SECONDS = 10.0  # a user's gate may hang; the next process settles the run again


class ScheduleKeeper:
    """`look` is called again and again and never waits; `wake` asks for a tick at once, from any thread."""

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        owner: str,
        *,
        done: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`done` is called, in any thread, when there may be something new for the reconciler."""
        self._done = done
        self._settings = settings
        self._repository = repository
        self._owner = owner
        self._monotonic = monotonic
        self._next = monotonic()
        self._ticks = OneAtATime("ticks")
        self._settling = OneAtATime("settling")
        self._telling = OneAtATime("telling")  # a receiver that does not answer holds up no data set

    def look(self) -> None:
        """Begin what is to be done now. Raises DatabaseDown."""
        if not self._repository.has_schedules():
            return
        if self._monotonic() >= self._next and self._ticks.start(self._tick):
            self._next = self._monotonic() + self._settings.schedule_tick_seconds
        if self._repository.unsettled_runs():
            self._settling.start(self._settle)
        if self._repository.unsent_notices(self._settings.notice_tries):
            self._telling.start(self._tell)

    def wake(self) -> None:
        if not self._ticks.start(self._tick):
            self._next = self._monotonic()  # a tick is under way, and may have looked already

    def stop(self) -> None:
        deadline = self._monotonic() + STOP_SECONDS
        for each in (self._ticks, self._settling, self._telling):
            each.wait(max(0.0, deadline - self._monotonic()))

    def wait(self) -> None:
        """Until what was begun has ended."""
        for each in (self._ticks, self._settling, self._telling):
            each.wait()

    def _tick(self) -> None:
        from jobs.schedules.tick import Ticker  # the tokenizer and all: only where there are schedules

        Ticker(self._settings, self._repository).tick()
        self._done()

    def _settle(self) -> None:
        from jobs.schedules.settling import Settler

        if Settler(self._settings, self._repository, self._owner).work():
            self._telling.start(self._tell)  # who waits for a run stops us as soon as it has ended
            self._done()
            self.wake()  # a run that waited for its turn may begin

    def _tell(self) -> None:
        from jobs.schedules.telling import Teller

        Teller(self._settings, self._repository).work()
