"""Embedded mode: one process owns a state directory and runs broker, reconciler and worker below it.

Everything is as in real mode, the tables, the messages and the code; only the addresses differ. A second process joins
the owner that runs, and takes its place when it ends.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from filelock import FileLock, Timeout

from jobs.broker import BrokerFailed, PrivateBroker, private_folder
from jobs.exits import OwnerMissing
from jobs.settings import Settings
from jobs.supervisor import WorkerSupervisor
from storage import migrate
from storage.durable import write_atomic
from storage.repository import Repository

if TYPE_CHECKING:
    from jobs.reconciler import Reconciler

log = logging.getLogger(__name__)

PROBE_SECONDS = 0.3  # longer than another process holds the lock only to look


class OwnerBusy(Exception):
    """Another process owns this state directory; join it."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where broker and database are."""

    broker_url: str
    database_url: str


def database_url(settings: Settings) -> str:
    """The database below the state directory; it may not exist yet."""
    return f"sqlite:///{settings.home}/nightmill.db"


def broker_url(settings: Settings) -> str:
    """The broker of the running owner, or where the next one's will most likely be."""
    found = _read_owner_file(settings)
    return found.broker_url if found else f"redis+socket://{settings.home}/broker/valkey.sock"


def owner_alive(settings: Settings) -> bool:
    """Whether a process owns the state directory now."""
    if not settings.home.is_dir():
        return False
    lock = _lock(settings)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def connect(settings: Settings) -> Addresses:
    """The addresses named by the settings, or those of the running owner. Raises OwnerMissing."""
    if settings.broker_url is not None and settings.database_url is not None:
        return Addresses(settings.broker_url.get_secret_value(), settings.database_url.get_secret_value())
    if not settings.embedded:
        raise OwnerMissing("name both NIGHTMILL_BROKER_URL and NIGHTMILL_DATABASE_URL, or neither")
    found = _read_owner_file(settings) if owner_alive(settings) else None
    if found is None:
        raise OwnerMissing(
            f"nothing runs in {settings.home}: `nightmill submit` starts everything, "
            "or name NIGHTMILL_BROKER_URL and NIGHTMILL_DATABASE_URL"
        )
    return found


class EmbeddedOwner:
    """Owns the state directory while it lives: `with EmbeddedOwner(settings) as owner: owner.start_worker()`."""

    def __init__(self, settings: Settings) -> None:
        """Starts nothing yet."""
        self._settings = settings
        self._home = settings.home
        self._lock = _lock(settings)
        self._stopping = threading.Event()
        self._broker: PrivateBroker | None = None
        self._repository: Repository | None = None
        self._supervisor: WorkerSupervisor | None = None
        self._reconciler: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def addresses(self) -> Addresses:
        assert self._broker is not None, "the owner is not started"
        return Addresses(self._broker.url, database_url(self._settings))

    @property
    def broker_alive(self) -> bool:
        return self._broker is not None and self._broker.alive

    def start(self) -> None:
        """Database, broker and reconciler. Raises OwnerBusy, BrokerFailed, StorageError; then nothing is left behind.

        Call it from a thread that lasts as long as the owner: children die with it.
        """
        private_folder(self._home)
        try:
            self._lock.acquire(timeout=PROBE_SECONDS)
        except Timeout as error:
            raise OwnerBusy(f"another process owns {self._home}") from error
        try:
            migrate.upgrade(database_url(self._settings))
            self._broker = PrivateBroker(self._home)
            self._broker.start()
            self._repository = Repository(database_url(self._settings))
            content = {"pid": os.getpid(), "broker_url": self._broker.url, "database_url": self.addresses.database_url}
            write_atomic(_owner_file(self._settings), json.dumps(content).encode())
            self._start_reconciler(self._repository)
        except BaseException:
            self.stop()
            raise

    def start_worker(self, model: str | None = None) -> None:
        """Keep one worker while jobs wait; without `model` it serves the oldest waiting job's. Again after it was given
        up: see `check`."""
        assert self._repository is not None, "the owner is not started"
        self._supervisor = WorkerSupervisor(self._settings, self._repository, self.addresses.broker_url, model)
        self._supervisor.start()

    def check(self) -> None:
        """Raises OwnerMissing when broker or worker cannot be kept running; the message has the end of their log."""
        if self._broker is not None and not self._broker.alive and not self._stopping.is_set():
            raise OwnerMissing(f"the private broker has ended; its log is {self._home / 'broker.log'}. Submit again")
        if self._supervisor is not None and self._supervisor.problem is not None:
            raise OwnerMissing(self._supervisor.problem)
        if self._reconciler is not None and not self._reconciler.is_alive() and not self._stopping.is_set():
            raise OwnerMissing("the reconciler has ended by an error, which is in the log above. Submit again")

    def stop(self) -> None:
        """Seal the work, stop every child, give the directory back. Idempotent."""
        self._stopping.set()
        if self._supervisor is not None:
            self._supervisor.stop()
        if self._reconciler is not None:
            self._reconciler.join()
        if self._broker is not None:
            self._broker.stop()
        if self._repository is not None:
            self._repository.close()
        if self._lock.is_locked:
            _owner_file(self._settings).unlink(missing_ok=True)
            self._lock.release()

    def _start_reconciler(self, repository: Repository) -> None:
        from jobs.reconciler import Reconciler, make_dispatcher

        dispatcher = make_dispatcher(self._settings, repository, self.addresses.broker_url)
        dispatcher.fill(stale_seconds=0.0)  # the broker is new: every hint that was ever sent is gone
        reconciler = Reconciler(self._settings, repository, dispatcher)
        self._reconciler = threading.Thread(target=self._reconcile, args=(reconciler,), name="reconciler", daemon=True)
        self._reconciler.start()

    def _reconcile(self, reconciler: Reconciler) -> None:
        from jobs.control import serving_control

        with serving_control(self.addresses.broker_url, self._settings.redis_prefix, reconciler.wake):
            reconciler.run(self._stopping, on_change=True)


@contextmanager
def running(settings: Settings) -> Iterator[Callable[[], None]]:
    """Have broker, reconciler and worker running here, ours or another process's, until the block ends.

    Yields a function to be called from time to time: it takes over when the other owner has ended, and raises
    OwnerMissing when nothing can be kept running.
    """
    owner: EmbeddedOwner | None = None

    def check() -> None:
        nonlocal owner
        if owner is not None:
            owner.check()
        elif not owner_alive(settings):
            owner = _become_owner(settings)

    owner = _become_owner(settings)
    try:
        yield check
    finally:
        if owner is not None:
            owner.stop()


def _become_owner(settings: Settings) -> EmbeddedOwner | None:
    owner = EmbeddedOwner(settings)
    try:
        owner.start()
    except OwnerBusy:
        return None
    except BrokerFailed as error:
        raise OwnerMissing(str(error)) from error
    owner.start_worker()
    return owner


def _lock(settings: Settings) -> FileLock:
    return FileLock(settings.home / "owner.lock", mode=0o600, thread_local=False)


def _owner_file(settings: Settings) -> Path:
    return settings.home / "owner.json"


def _read_owner_file(settings: Settings) -> Addresses | None:
    try:
        content = json.loads(_owner_file(settings).read_text())
        return Addresses(str(content["broker_url"]), str(content["database_url"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
