"""One database, one disk, one queue and a virtual clock, shared by simulated processes.

The database is the model in memory or the real repository on SQLite; the disk and the queue are made up. A world serves
many schedules, one after another: `begin` empties it.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from sqlalchemy import event, select

from storage import migrate
from storage.database import Database
from storage.errors import DatabaseDown
from storage.records import Hint, JobId, Shard, ShardId
from storage.repository import Repository
from storage.tables import attempts, metadata
from tests.conformance.samples import queued_job
from tests.memory import MemoryRepository

T = TypeVar("T")

LEASE = 10.0
MAX_ATTEMPTS = 4
MAX_REOPENINGS = 3
ROTTEN = "its files are rotten"  # the error of a job of which that is the end
MAX_CRASHES = 3  # deaths of workers that one job may cost
EPOCH_1970 = 2440587.5  # as a Julian day
DAY = 86400.0


@dataclass(slots=True)
class Clock:
    """`database` is what SQL reads and may jump; `steady` is what processes measure by and never does."""

    database: float = 1e6
    steady: float = 0.0

    def advance(self, seconds: float) -> None:
        self.database += seconds
        self.steady += seconds


@dataclass(slots=True)
class Network:
    """How one process reaches SQL now."""

    down: bool = False
    loses_answers: int = 0  # so many of the next answers do not arrive


@dataclass(slots=True)
class World:
    repository: Any  # the real one, the model in memory, or something between the processes and one of them
    clock: Clock
    clear: Callable[[], None]  # empties the database
    outcomes: Callable[[JobId], dict[ShardId, dict[int, Any]]]  # how each attempt ended, by shard and epoch
    random: Random = field(default_factory=Random)
    job_id: JobId = field(default=JobId(0))
    shards: tuple[Shard, ...] = ()
    queue: list[Hint] = field(default_factory=list)
    files: dict[str, tuple[int, ...]] = field(default_factory=dict)  # key -> rows, in the order of writing
    rotten: set[str] = field(default_factory=set)  # keys of files that are damaged
    max_crashes: int = MAX_CRASHES
    manifest: dict[int, str] | None = None  # row -> status, as published
    reopenings: int = 0  # of its shards before that
    late: list[Callable[[], Any]] = field(default_factory=list)  # requests of dead processes, still on their way
    claims: dict[str, tuple[ShardId, int]] = field(default_factory=dict)  # by claim id
    serial: int = 0
    log: list[str] = field(default_factory=list)  # what happened, for whoever reads a failure

    def begin(self, seed: int) -> None:
        """An empty world with one queued job of a few small shards."""
        self.random = Random(seed)
        self.clock.database, self.clock.steady = 1e6, 0.0
        self.clear()
        num_shards, rows = self.random.randint(1, 3), self.random.randint(1, 4)
        tries = self.random.randint(2, MAX_ATTEMPTS)
        job = queued_job(self.repository, num_shards=num_shards, rows=rows, max_shard_attempts=tries)
        self.job_id = job.id
        self.shards = tuple(self.repository.shards(job.id))
        self.manifest, self.reopenings, self.serial = None, 0, 0
        for things in (self.queue, self.files, self.rotten, self.late, self.claims, self.log):
            things.clear()  # type: ignore[attr-defined]

    def ask(self, network: Network, move: Callable[[], T]) -> Iterator[None]:
        """A request that is repeated until its answer arrives. Anything may happen between question and answer."""
        while True:
            yield  # on its way: a process that dies here has asked for nothing, or for something that comes late
            if network.down:
                continue
            answer = move()
            yield  # done; a process that dies here never learns of it
            if network.loses_answers:
                network.loses_answers -= 1
                continue
            return answer

    def ask_now(self, network: Network, move: Callable[[], T]) -> T:
        """The same in one step, once. Raises DatabaseDown."""
        if network.down:
            raise DatabaseDown("no way to the database")
        answer = move()
        if network.loses_answers:
            network.loses_answers -= 1
            raise DatabaseDown("the answer was lost")
        return answer


def memory_world(wrap: Callable[[Any], Any] = lambda repository: repository) -> World:
    """`wrap` may put something between the processes and the repository: a bug, say."""
    clock = Clock()
    memory = MemoryRepository(lambda: clock.database)
    return World(repository=wrap(memory), clock=clock, clear=memory.clear, outcomes=memory.outcomes)


def real_world(folder: Path, wrap: Callable[[Any], Any] = lambda repository: repository) -> World:
    """The same on SQLite, whose clock is the virtual one."""
    clock = Clock()
    path = folder / "world.db"
    path.write_bytes(_migrated_file())
    repository = Repository(f"sqlite:///{path}")
    _set_up(repository._db, clock)

    def clear() -> None:
        with repository._db.write() as conn:
            for table in reversed(metadata.sorted_tables):
                conn.exec_driver_sql(f"DELETE FROM {table.name}")

    def outcomes(job_id: JobId) -> dict[ShardId, dict[int, Any]]:
        with repository._db.read() as conn:
            rows = conn.execute(select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.epoch))
            found: dict[ShardId, dict[int, Any]] = {}
            for row in rows:
                found.setdefault(ShardId(row.shard_id), {})[row.epoch] = row.outcome
        return found

    return World(repository=wrap(repository), clock=clock, clear=clear, outcomes=outcomes)


@functools.cache
def _migrated_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        migrate.upgrade(f"sqlite:///{folder}/migrated.db")
        return (Path(folder) / "migrated.db").read_bytes()


def _set_up(database: Database, clock: Clock) -> None:
    """Let SQL read the virtual clock, and let nothing wait for a disk: no power is cut here."""

    @event.listens_for(database._writer, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("PRAGMA synchronous = OFF")
        connection.create_function("julianday", 1, lambda text: clock.database / DAY + EPOCH_1970)

    database._writer.dispose()
