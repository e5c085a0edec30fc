"""Work beside the reconciler's loop, which must not wait for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from storage.errors import StorageError

log = logging.getLogger(__name__)


class OneAtATime:
    """Runs a piece of work in a thread of its own unless the one before is still at it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, work: Callable[[], object]) -> bool:
        """False when the piece before has not ended yet."""
        with self._lock:
            if self.busy:
                return False
            self._thread = threading.Thread(target=self._run, args=(work,), name=self._name, daemon=True)
            self._thread.start()
            return True

    def wait(self, seconds: float | None = None) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self, work: Callable[[], object]) -> None:
        try:
            work()
        except StorageError as error:
            log.warning("%s stopped: %s", self._name, error)
        except Exception:  # a mistake of ours: the next turn goes on
            log.exception("%s failed", self._name)
