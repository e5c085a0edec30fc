"""From ready shards in SQL to hints in the queue: a small window per model, SQL first, message second."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage import failpoints
from storage.records import Hint

if TYPE_CHECKING:
    from storage.repository import Repository

log = logging.getLogger(__name__)

MIN_WINDOW = 8
STALE_FACTOR = 10.0  # a hint this many times too old is sent again even though the queue is not empty


class BrokerDown(Exception):
    """The broker cannot be reached now. Nothing is lost: the reconciler sends the hint again."""


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """Keeps `2 x slots x live workers` hints queued per model. Any number may run at once."""

    repository: Repository
    publish: Callable[[Hint], None]
    queue_length: Callable[[str], int | None]
    slots: int
    stale_seconds: float
    worker_stale_seconds: float

    def fill(self, *, stale_seconds: float | None = None) -> int:
        """Fill every model's window; returns the number of hints sent. Raises BrokerDown, DatabaseDown."""
        workers = self.repository.workers(self.worker_stale_seconds)
        sent = 0
        for model, _ in self.repository.waiting_models():
            live = sum(worker.model_key == model.key for worker in workers)
            window = max(MIN_WINDOW, 2 * self.slots * live)
            stale = self._stale(model.key) if stale_seconds is None else stale_seconds
            for hint in self.repository.dispatch(model.key, window, stale):
                failpoints.reach("dispatch.after_sql")
                self.publish(hint)
                sent += 1
        return sent

    def _stale(self, model_key: str) -> float:
        """A hint may wait long behind others; only an empty queue shows early that it was lost."""
        return self.stale_seconds if self.queue_length(model_key) == 0 else self.stale_seconds * STALE_FACTOR
