"""One database, SQLite or PostgreSQL: connections, transactions, its clock, its locks, and its errors in our words.

Times are seconds since 1970 (UTC) as doubles, always read from the database's own clock, so that "now + seconds" means
the same on both and no worker's clock matters.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import psycopg
from sqlalchemy import Connection, Double, Engine, create_engine, event, exc, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from storage.errors import DatabaseDown, FileDamaged, SchemaOutdated, StorageError

BUSY_SECONDS = 10.0
STUCK_SECONDS = 60.0  # a stopped process must not hold its row locks for longer
# a link over which nothing passes is given up within 20 s; otherwise a thread waits a quarter of an hour for its answer
_LINK = {"tcp_user_timeout": 20_000, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 2}
_NO_SUCH_TABLE = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)
_SECRETS = ("password", "sslpassword")  # may also stand in the query part of an address
UPGRADE_HINT = "run `nightmill db upgrade`"


class now(FunctionElement[float]):
    """Seconds since 1970 on the database's clock, read once per statement."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite_now(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"  # unixepoch('subsec') needs SQLite 3.42


@compiles(now, "postgresql")
def _postgres_now(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    # clock_timestamp() moves within a transaction, unlike now(); the sub-select lets the planner use an index on it
    return "(SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision))"


class Database:
    """Owns the connections to one database. `write()` and `read()` are the only ways in; each is one transaction."""

    def __init__(self, url: str, *, create: bool = False) -> None:
        """Connect once. A SQLite file that is not there is made only with `create`. Raises DatabaseDown."""
        self._url = _normalise(url)
        if not create:
            _require_file(self._url)
        engine = _sqlite_engine(self._url) if self.is_sqlite else _postgres_engine(self._url)
        self._writer = engine.execution_options(nightmill_write=True)
        # SQLite's own waiting is polling and unfair; threads of one process queue up here instead
        self.turn: AbstractContextManager[Any] = Lock() if self.is_sqlite else nullcontext()
        # a reader of several statements sees one moment: SQLite does so anyway
        self._reader = engine if self.is_sqlite else engine.execution_options(isolation_level="REPEATABLE READ")
        try:
            with self.read() as conn:
                conn.execute(select(1))
        except BaseException:
            engine.dispose()
            raise

    @property
    def is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    @property
    def file(self) -> Path | None:
        """Of SQLite."""
        return Path(str(self._url.database)) if self.is_sqlite else None

    @property
    def name(self) -> str:
        """The address as it may be shown: without its password."""
        return self._url.difference_update_query(_SECRETS).render_as_string(hide_password=True)

    def close(self) -> None:
        self._writer.dispose()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One writing transaction; SQLite takes its write lock at the start, so it never has to be repeated."""
        with self.turn, self._translated(), self._writer.begin() as conn:
            yield conn

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One transaction that sees a single moment of the database."""
        with self._translated(), self._reader.begin() as conn:
            yield conn

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except exc.DBAPIError as error:
            ours = self._in_our_words(error)
            if ours is None:
                raise
            raise ours from error
        except exc.TimeoutError as error:
            raise DatabaseDown(f"no free connection to {self.name}; fewer threads at once, or try again") from error

    def _in_our_words(self, error: exc.DBAPIError) -> StorageError | None:
        """None for a statement that the database refused: a bug of ours, or a conflict that the caller knows."""
        reason = str(error.orig).strip().partition("\n")[0]
        if isinstance(error.orig, _NO_SUCH_TABLE) or reason.startswith(("no such table", "no such column")):
            return SchemaOutdated(f"the schema of {self.name} is not this program's ({reason}); {UPGRADE_HINT}")
        if _is_full(error.orig):
            return DatabaseDown(f"the disk of the database {self.name} is full; make room, then work goes on")
        if isinstance(error, exc.OperationalError | exc.InterfaceError):
            return DatabaseDown(f"the database {self.name} does not answer: {reason}; check that it runs and try again")
        if type(error) is exc.DatabaseError:
            return FileDamaged(f"the database {self.name} cannot be read: {reason}; restore it or name another")
        return None


def lock(conn: Connection, key: int) -> None:
    """Wait until no other transaction holds `key`; released at the end. A SQLite writer already excludes all others."""
    if conn.dialect.name == "postgresql":
        conn.execute(select(func.pg_advisory_xact_lock(key)))


def _is_full(error: BaseException | None) -> bool:
    return isinstance(error, psycopg.errors.DiskFull) or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _normalise(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        # the text is not shown: it may hold a password
        raise StorageError("the database URL cannot be parsed; use sqlite:///PATH or postgresql://...") from None
    if parsed.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in {None, "", ":memory:"}:
            raise StorageError("an in-memory SQLite database cannot be shared; use sqlite:///PATH")
        return parsed
    raise StorageError(f"databases of kind {parsed.drivername!r} are not supported; use sqlite:/// or postgresql://")


def _require_file(url: URL) -> None:
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise DatabaseDown(f"there is no database file {url.database}; {UPGRADE_HINT}")


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(
        url, hide_parameters=True, connect_args={"timeout": BUSY_SECONDS}, pool_size=8, max_overflow=24
    )

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def _on_begin(conn: Connection) -> None:
        writes = conn.get_execution_options().get("nightmill_write", False)
        conn.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgres_engine(url: URL) -> Engine:
    connect_args: dict[str, Any] = {"connect_timeout": int(BUSY_SECONDS), "application_name": "nightmill"}
    for name, value in _LINK.items():
        if name not in url.query:
            connect_args[name] = value
    if "options" not in url.query:
        connect_args["options"] = f"-c idle_in_transaction_session_timeout={int(STUCK_SECONDS * 1000)}"
    return create_engine(
        url, hide_parameters=True, connect_args=connect_args, pool_size=8, max_overflow=24, pool_pre_ping=True
    )
