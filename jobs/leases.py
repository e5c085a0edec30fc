"""One heartbeat thread per worker: it renews every lease in one statement and hears of cancels and lost shards."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from storage.errors import Fenced, StorageError
from storage.records import Health, ShardId
from storage.repository import Repository

log = logging.getLogger(__name__)


class Lease:
    """The right to work on one shard under one epoch. The flags are set by the heartbeat, never unset.

    `cancelled`: no further row; `aborted`: end those in the engine too; `paused`: the same, and the job goes on later.
    """

    __slots__ = ("aborted", "cancelled", "epoch", "lost", "paused", "shard_id")

    def __init__(self, shard_id: ShardId, epoch: int) -> None:
        self.shard_id = shard_id
        self.epoch = epoch
        self.lost = False
        self.cancelled = False
        self.aborted = False
        self.paused = False


class LeaseKeeper:
    """Renews the leases and the worker's own row. While SQL is down nobody can steal a lease: work goes on, but
    nothing new may be claimed once the last good heartbeat is older than a lease, by this host's monotonic clock."""

    def __init__(
        self,
        repository: Repository,
        owner: str,
        boot_id: str,
        *,
        lease_seconds: float,
        heartbeat_seconds: float,
        on_health: Callable[[bool], None] = lambda healthy: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.owner = owner
        self.lease_seconds = lease_seconds
        self.replaced: Fenced | None = None  # another process has the worker's name: this one must end
        self.drain_requested = False
        self.health: Callable[[], Health] = Health  # what is said with each heartbeat
        self._repository = repository
        self._boot_id = boot_id
        self._heartbeat_seconds = heartbeat_seconds
        self._on_health = on_health
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._leases: dict[ShardId, Lease] = {}
        self._last_good = monotonic()
        self._state = "ready"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the heartbeat; the leases that are left run out."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * self._heartbeat_seconds)

    def say(self, state: str) -> None:
        """The worker's state in SQL from the next heartbeat on."""
        self._state = state

    def hold(self, shard_id: ShardId, epoch: int) -> Lease:
        lease = Lease(shard_id, epoch)
        with self._lock:
            self._leases[shard_id] = lease
        return lease

    def drop(self, lease: Lease) -> None:
        with self._lock:
            self._leases.pop(lease.shard_id, None)

    @property
    def silent_for(self) -> float:
        """Seconds since the last good heartbeat was sent."""
        return self._monotonic() - self._last_good

    def beat(self) -> None:
        """One heartbeat. Raises StorageError; the leases stay as they are then."""
        with self._lock:
            leases = dict(self._leases)
        sent_at = self._monotonic()
        if leases:
            held = [(lease.shard_id, lease.epoch) for lease in leases.values()]
            answer = self._repository.heartbeat(self.owner, held, self.lease_seconds)
            for shard_id, lease in leases.items():
                lease.lost = lease.lost or shard_id not in answer.held
                lease.cancelled = lease.cancelled or shard_id in answer.cancelled
                lease.aborted = lease.aborted or shard_id in answer.aborted
                lease.paused = lease.paused or shard_id in answer.paused
        asked = self._repository.beat_worker(self.owner, self._boot_id, self._state, self.health())
        self.drain_requested = self.drain_requested or asked
        self._last_good = sent_at

    def _run(self) -> None:
        while not self._stop.wait(self._heartbeat_seconds):
            try:
                self.beat()
            except Fenced as error:
                self.replaced = error
            except StorageError as error:
                log.warning("heartbeat failed worker=%s silent_for=%.1f error=%s", self.owner, self.silent_for, error)
            except Exception:  # a mistake of ours: without heartbeats every lease would run out, again and again
                log.exception("heartbeat failed worker=%s silent_for=%.1f", self.owner, self.silent_for)
            self._on_health(self.silent_for < self.lease_seconds)
