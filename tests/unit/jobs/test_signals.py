"""Signals that come while the main thread is where a handler must not wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from jobs.signals import handle_once, set_on_signals

NUMBER = signal.SIGUSR1


@pytest.fixture(autouse=True)
def handler_as_before() -> Iterator[None]:
    before = signal.getsignal(NUMBER)
    yield
    signal.signal(NUMBER, before)


def test_an_event_is_set_although_the_signal_interrupted_the_main_thread_inside_it() -> None:
    event = threading.Event()
    set_on_signals(event, NUMBER)

    with event._cond:  # type: ignore[attr-defined] - where `wait` is for a moment before and after it waits
        signal.raise_signal(NUMBER)

    assert event.wait(10)


def test_a_signal_may_come_again_and_again() -> None:
    event = threading.Event()
    set_on_signals(event, NUMBER)

    for _ in range(100):
        signal.raise_signal(NUMBER)

    assert event.wait(10)


def test_no_second_signal_interrupts_the_handler_of_the_first() -> None:
    calls: list[str] = []

    def handler(*_: object) -> None:
        calls.append("begins")
        signal.raise_signal(NUMBER)
        calls.append("ends")

    signal.signal(NUMBER, handler)
    handle_once(NUMBER)

    signal.raise_signal(NUMBER)
    signal.raise_signal(NUMBER)

    assert calls == ["begins", "ends"]
