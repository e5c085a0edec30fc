"""Where this command finds database and broker: named by the environment (real mode), or below the state directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs import report
from jobs.exits import UsageError
from jobs.settings import Settings

if TYPE_CHECKING:
    from storage.records import Job, Shard
    from storage.repository import Repository


@dataclass(frozen=True, slots=True)
class Place:
    """Addresses of one installation. `shown_database` has no password."""

    settings: Settings
    database_url: str
    broker_url: str
    shown_database: str


def settings() -> Settings:
    """The settings of this process. Raises UsageError when only one of the two addresses is named."""
    found = Settings()
    if (found.broker_url is None) != (found.database_url is None):
        absent = "NIGHTMILL_BROKER_URL" if found.broker_url is None else "NIGHTMILL_DATABASE_URL"
        given = "NIGHTMILL_DATABASE_URL" if found.broker_url is None else "NIGHTMILL_BROKER_URL"
        raise UsageError(
            f"{given} is set but {absent} is not: set {absent} as well, or unset both to run everything on this machine"
        )
    return found


def find() -> Place:
    """The addresses of this installation. Raises UsageError."""
    from sqlalchemy.engine import make_url

    found = settings()
    if found.broker_url is not None and found.database_url is not None:
        database, broker = found.database_url.get_secret_value(), found.broker_url.get_secret_value()
    else:
        from jobs import embedded

        database, broker = embedded.database_url(found), embedded.broker_url(found)
    return Place(found, database, broker, make_url(database).render_as_string(hide_password=True))


def prepare_home(place: Place) -> None:
    """Make the state directory of embedded mode, for this user alone."""
    if place.settings.embedded:
        place.settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)


@contextmanager
def repository() -> Iterator[Repository]:
    """The database, open and at this program's schema. Raises DatabaseDown, SchemaOutdated, UsageError."""
    from storage import migrate
    from storage.repository import Repository

    place = find()
    if place.settings.embedded:
        prepare_home(place)
        if migrate.current(place.database_url) is None:
            migrate.upgrade(place.database_url)  # the first command on this machine
    opened = Repository(place.database_url)
    try:
        opened.check_schema()
        yield opened
    finally:
        opened.close()


def missing(repository: Repository, job: Job, shards: Sequence[Shard]) -> list[str]:
    """Which processes have to be started before the job can go on; each line has the command."""
    from jobs import embedded

    found = settings()
    live = repository.workers(max_age_seconds=found.worker_stale_seconds)
    owner_alive = found.embedded and embedded.owner_alive(found)
    return report.missing_processes(job, shards, live, embedded=found.embedded, owner_alive=owner_alive)
