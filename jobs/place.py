"""Where this process finds database and broker: named by the environment (real mode), or below the state directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from jobs.exits import UsageError
from jobs.settings import Settings

if TYPE_CHECKING:
    from storage.repository import Repository


@dataclass(frozen=True, slots=True)
class Place:
    """Addresses of one installation, with the settings that go with them."""

    settings: Settings
    database_url: str
    broker_url: str

    @property
    def shown_database(self) -> str:
        """The address of the database without its password."""
        from sqlalchemy.engine import make_url

        return make_url(self.database_url).render_as_string(hide_password=True)

    @property
    def is_new(self) -> bool:
        """Embedded mode, and nothing was ever run here."""
        from sqlalchemy.engine import make_url

        return self.settings.embedded and not Path(str(make_url(self.database_url).database)).exists()

    @property
    def owner_alive(self) -> bool:
        """Embedded mode, and a process runs broker, worker and reconciler here."""
        from jobs.embedded import owner_alive

        return self.settings.embedded and owner_alive(self.settings)

    def prepare(self) -> None:
        """Make state directory and database of embedded mode if nothing was ever run here. Raises UsageError."""
        from sqlalchemy.engine import make_url

        from storage import migrate

        if not self.is_new:
            return
        try:
            self.settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(
                f"the state directory {self.settings.home} cannot be made ({error.strerror}):"
                " set NIGHTMILL_HOME to a directory of yours"
            ) from error
        migrate.create(Path(str(make_url(self.database_url).database)))

    @contextmanager
    def repository(self) -> Iterator[Repository]:
        """The database, open and at this program's schema. Raises DatabaseDown, SchemaOutdated, UsageError."""
        from storage.repository import Repository

        self.prepare()
        opened = Repository(self.database_url)
        try:
            opened.check_schema()
            yield opened
        finally:
            opened.close()


def find(changes: Mapping[str, Any] | None = None) -> Place:
    """The addresses of this installation; `changes` replaces settings. Raises UsageError when only one is named, or
    a setting cannot be honoured."""
    try:
        settings = Settings(**(changes or {}))
    except ValidationError as error:
        problems = "; ".join(f"NIGHTMILL_{str(each['loc'][0]).upper()}: {each['msg']}" for each in error.errors())
        raise UsageError(f"a setting cannot be used: {problems}") from None
    if settings.contradiction is not None:
        raise UsageError(f"a setting cannot be used: {settings.contradiction}")
    broker, database = settings.broker_url, settings.database_url
    if broker is not None and database is not None:
        return Place(settings, database.get_secret_value(), broker.get_secret_value())
    if broker is not None or database is not None:
        given, absent = ("BROKER", "DATABASE") if broker is not None else ("DATABASE", "BROKER")
        raise UsageError(
            f"NIGHTMILL_{given}_URL is set but NIGHTMILL_{absent}_URL is not: set it as well,"
            " or unset both to run everything on this machine"
        )
    from jobs.embedded import broker_url, database_url

    return Place(settings, database_url(settings), broker_url(settings))
