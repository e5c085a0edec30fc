"""Look at this machine and the services it needs; each check is found well or comes with what to do.

No check imports torch or loads a model; a check that raises is a problem found, never the end of the others.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import psutil

from engine.attention.compile import CannotCompile, load_kernel
from jobs.settings import Settings

if TYPE_CHECKING:
    from jobs.place import Place
    from storage.repository import Repository

MIN_PYTHON = (3, 11)
MIN_MEMORY = 2 << 30


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `nightmill doctor`. `remedy` is None when all is well."""

    name: str
    found: str
    remedy: str | None = None

    @property
    def ok(self) -> bool:
        return self.remedy is None


def examine(place: Place) -> list[Check]:
    """Every check, in the order in which problems are best solved."""
    return [
        _python(),
        *(_package(name) for name in ("torch", "transformers", "celery", "flower")),
        _attention(load_kernel),
        _memory(psutil.virtual_memory().available),
        _home(place.settings),
        *_services(place),
    ]


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}"
    return Check("python", found, None if sys.version_info >= MIN_PYTHON else "install Python 3.11 or newer")


def _package(name: str) -> Check:
    try:
        return Check(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, "not installed", "pip install nightmill again, with its constraints.txt")


def _attention(load: Callable[[], object]) -> Check:
    """The path that attention takes on a CPU."""
    try:
        load()
    except CannotCompile as error:
        return Check("attention", f"plain torch, which is slower on CPUs: {error}", "install gcc or clang, or set CC")
    return Check("attention", "native kernel")


def _memory(available: int) -> Check:
    remedy = None if available >= MIN_MEMORY else "free some memory, or lower NIGHTMILL_CACHE_BYTES"
    return Check("memory", f"{available / (1 << 30):.1f} GiB available", remedy)


def _home(settings: Settings) -> Check:
    home = settings.home
    nearest = next(path for path in (home, *home.parents) if path.exists())
    if os.access(nearest, os.W_OK | os.X_OK) and nearest.is_dir():
        return Check("state directory", str(home))
    return Check("state directory", f"{home} cannot be written", "set NIGHTMILL_HOME to a directory of yours")


def _services(place: Place) -> Iterator[Check]:
    """Broker, database and workers. In embedded mode they run only while an owner does, which is no problem."""
    if place.settings.embedded and not place.owner_alive:
        yield Check("mode", f"embedded; no owner runs in {place.settings.home}, the next submit starts one")
    else:
        yield Check("mode", "embedded; an owner runs" if place.settings.embedded else "broker and database by URL")
        yield _broker(place)
    yield from _database(place)


def _broker(place: Place) -> Check:
    from jobs.dispatch import BrokerDown
    from jobs.monitor.broker import require_broker

    try:
        require_broker(place.broker_url)
    except BrokerDown as error:
        return Check("broker", str(error), "start Redis or Valkey there, or correct NIGHTMILL_BROKER_URL")
    return Check("broker", "answers")


def _database(place: Place) -> Iterator[Check]:
    from storage import migrate
    from storage.errors import DatabaseDown, SchemaOutdated, StorageError
    from storage.repository import Repository

    if place.is_new:
        yield Check("database", f"{place.shown_database} is made by the first submit")
        return
    try:
        repository = Repository(place.database_url)
    except StorageError as error:
        yield Check("database", str(error), "start it, or correct NIGHTMILL_DATABASE_URL")
        return
    try:
        repository.check_schema()
        yield Check("database", f"{place.shown_database} at schema {migrate.current(place.database_url)}")
        yield _workers(place, repository)
    except SchemaOutdated as error:
        yield Check("database", str(error), "run `nightmill db upgrade`")
    except DatabaseDown as error:
        yield Check("database", str(error), "start it, or correct NIGHTMILL_DATABASE_URL")
    finally:
        repository.close()


def _workers(place: Place, repository: Repository) -> Check:
    """Whether every model with waiting work has a live worker, and somebody reconciles."""
    from jobs.client import staff
    from jobs.report import serving_command

    here = staff(place, repository)
    names = [*sorted(here.models.values()), *(["a reconciler"] if here.reconciler else [])]
    found = f"live: {', '.join(names)}" if names else "none live"
    if place.settings.embedded:
        return Check("workers", found)
    unserved = [model for model, _ in repository.waiting_models() if model.key not in here.models]
    remedies = [f"start `{serving_command(model)}`" for model in unserved]
    if not here.reconciler:
        remedies.append("start `nightmill reconciler`")
    return Check("workers", found, "; ".join(remedies) or None)
