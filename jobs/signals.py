"""Signal handlers that cannot wait for a lock of the thread that they interrupt.

Python runs them in the main thread between two of its steps, wherever that is, and a second signal interrupts the
handler of the first. A parent that is killed sends its children one SIGTERM per thread, within microseconds.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


def set_on_signals(event: threading.Event, *numbers: signal.Signals) -> None:
    """Set the event when one of these signals comes. Another thread sets it: the main one may be inside the event."""
    came: SimpleQueue[int] = SimpleQueue()  # made to be filled by handlers

    def pass_on() -> None:
        came.get()
        event.set()

    threading.Thread(target=pass_on, name="signals", daemon=True).start()
    for number in numbers:
        signal.signal(number, lambda number, _: came.put(number))


def handle_once(number: signal.Signals) -> None:
    """From the first signal on, ignore further ones, so that none interrupts the handler that is set now.

    Celery's handler of SIGTERM takes a lock, and a second one within it would wait for that lock for ever.
    """
    handler = signal.getsignal(number)
    assert callable(handler), f"nobody handles {number.name}"

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        handler(number, frame)

    signal.signal(number, handle)
