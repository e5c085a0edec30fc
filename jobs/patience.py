"""Waiting for a database that does not answer now."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from storage.errors import DatabaseDown

T = TypeVar("T")

FIRST_PAUSE = 0.1  # seconds
LONGEST_PAUSE = 5.0


def until_answered(question: Callable[[], T], stopping: threading.Event) -> T:
    """Ask again, at growing pauses, until there is an answer. Raises DatabaseDown only once `stopping` is set."""
    pause = FIRST_PAUSE
    while True:
        try:
            return question()
        except DatabaseDown:
            if stopping.wait(pause):
                raise
            pause = min(2 * pause, LONGEST_PAUSE)
