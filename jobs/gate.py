"""When a worker may take one more message: the engine must never drain, and a shard must never wait in vain."""

from __future__ import annotations

import threading
from collections.abc import Callable

from storage.records import ShardId


class Gate:
    """Counts the shards in flight of one worker and the sequences that they still owe. Thread-safe.

    A shard *enters* when its message arrives, *owes* sequences once its plan is read, and *leaves* at its end.
    Only one shard may be between entering and owing: until then nobody knows how much work it brings.
    A shard that runs alone has its turn when those that entered before it have left; those after it wait for its end.
    """

    def __init__(self, slots: int, target: int, on_open: Callable[[], None] = lambda: None) -> None:
        """`target`: sequences in the engine below which more work is wanted (twice the batch)."""
        self.slots = slots
        self.target = target
        self.on_open = on_open
        self._lock = threading.RLock()  # a signal handler that closes the gate may interrupt the thread that reads it
        self._owed: dict[ShardId, int | None] = {}  # in the order of entering
        self._alone: set[ShardId] = set()
        self._closed: set[str] = set()

    def enter(self, shard_id: ShardId, *, alone: bool = False) -> bool:
        """False when this shard is in flight here already: a doubled hint."""
        with self._lock:
            if shard_id in self._owed:
                return False
            self._owed[shard_id] = None
            if alone:
                self._alone.add(shard_id)
            return True

    def has_turn(self, shard_id: ShardId) -> bool:
        """Whether a shard that has entered may begin. Nothing is taken meanwhile, so its turn comes."""
        with self._lock:
            order = list(self._owed)
            before = order[: order.index(shard_id)]
            return not before if shard_id in self._alone else self._alone.isdisjoint(before)

    def owe(self, shard_id: ShardId, sequences: int) -> None:
        """This many sequences of the shard are still to be generated."""
        with self._lock:
            if shard_id in self._owed:
                self._owed[shard_id] = sequences
        self._wake()

    def leave(self, shard_id: ShardId) -> None:
        with self._lock:
            self._owed.pop(shard_id, None)
            self._alone.discard(shard_id)
        self._wake()

    def close(self, reason: str) -> None:
        """Take nothing until this reason is gone: stopping, or no database."""
        with self._lock:
            self._closed.add(reason)

    def open(self, reason: str) -> None:
        with self._lock:
            self._closed.discard(reason)
        self._wake()

    @property
    def reasons(self) -> list[str]:
        """Why nothing is taken, whatever room there is."""
        with self._lock:
            return sorted(self._closed)

    @property
    def in_flight(self) -> int:
        with self._lock:
            return len(self._owed)

    @property
    def limit(self) -> int:
        """How many messages this worker may hold now: all that it has and one more, or none at all."""
        with self._lock:
            owed = [sequences for sequences in self._owed.values() if sequences is not None]
            if self._closed or self._alone or len(self._owed) >= self.slots or sum(owed) >= self.target:
                return 0
            return len(owed) + 1

    def _wake(self) -> None:
        if self.limit > 0:
            self.on_open()
