"""A stream of requests into the engine and the stream of completions out of it, between two threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType

from engine.errors import EngineDead
from engine.request import Completion, Request


class Feed:
    """One caller's requests. The engine's thread pulls and delivers; the caller's thread polls, iterates or cancels.

    A request that fails comes back as a completion with finish_reason "error". An exception in the caller's iterator
    ends the pulling: what was pulled before still finishes, then `poll` raises it.
    """

    def __init__(self, requests: Iterable[Request], wake: Callable[[], None]) -> None:
        self._requests = iter(requests)
        self._wake = wake
        self._changed = threading.Condition()
        self._finished: deque[Completion] = deque()
        self._num_open = 0  # sequences in the engine
        self._exhausted = False
        self._cancelled = False
        self._error: BaseException | None = None

    # -- the caller's side

    def poll(self, timeout: float) -> list[Completion]:
        """What has finished since the last poll; waits up to `timeout` seconds for something, or for the end."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._finished and not self._has_ended():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return []
                self._changed.wait(remaining)
            completions = list(self._finished)
            self._finished.clear()
            if not completions and self._error is not None:
                error = self._error
                if not isinstance(error, EngineDead):
                    self._error = None  # told once; the feed is done then
                raise error
            return completions

    @property
    def done(self) -> bool:
        """True when the requests are exhausted and every completion was polled."""
        with self._changed:
            return self._has_ended() and not self._finished and self._error is None

    def cancel(self) -> None:
        """Pull no more; what is in the engine ends as "abort"."""
        with self._changed:
            self._cancelled = True
        self._wake()

    def __iter__(self) -> Iterator[Completion]:
        while not self.done:
            yield from self.poll(1.0)

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def _has_ended(self) -> bool:
        return isinstance(self._error, EngineDead) or (self._exhausted and self._num_open == 0)

    # -- the engine's side

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled

    @property
    def has_more(self) -> bool:
        """Whether there may be requests that the engine has not pulled yet."""
        return not self._exhausted and not self._cancelled

    @property
    def is_closed(self) -> bool:
        """Nothing left to pull and nothing in the engine; completions may still wait for the caller."""
        return self._exhausted and self._num_open == 0

    def pull(self) -> Request | None:
        """The next request, or None at the end. What the caller's iterator raises becomes the feed's error."""
        try:
            return next(self._requests)
        except StopIteration:
            self.close()
        except Exception as error:  # noqa: BLE001 - foreign code: it may end its own feed, never the engine
            self.close(error)
        return None

    def opened(self, num_sequences: int) -> None:
        with self._changed:
            self._num_open += num_sequences

    def deliver(self, completion: Completion) -> None:
        with self._changed:
            self._num_open -= 1
            self._finished.append(completion)
            self._changed.notify_all()

    def close(self, error: BaseException | None = None) -> None:
        """Nothing more is pulled. With EngineDead, nothing more comes out either."""
        with self._changed:
            self._exhausted = True
            self._error = self._error or error
            self._changed.notify_all()
