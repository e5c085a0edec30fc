"""Schema versions, by Alembic alone. The chain of migrations lives in the package `migrations`, also in a wheel."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

import migrations
from storage.database import UPGRADE_HINT, Database, lock
from storage.durable import sync_folder, temporary
from storage.errors import SchemaOutdated

_UPGRADE_LOCK = 0x6E6D_0000


def upgrade(url: str, version: str = "head") -> None:
    """Bring a database to `version`, all or nothing; creates a SQLite file. Two at once: the second finds it done."""
    database = Database(url, create=True)
    try:
        with database.write() as conn:
            lock(conn, _UPGRADE_LOCK)
            config = _config()
            config.attributes["connection"] = conn
            command.upgrade(config, version)
    finally:
        database.close()


def create(path: Path) -> None:
    """Make a SQLite database of this version that appears whole: whoever looks meanwhile sees none. Two at once: one
    of them makes it. Raises OSError."""
    draft = temporary(path)
    try:
        upgrade(f"sqlite:///{draft}")
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def current(url: str) -> str | None:
    """The version of a database; None before its first migration."""
    database = Database(url)
    try:
        return _version(database)
    finally:
        database.close()


def head() -> str:
    """The version that this program was written for."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None, "the package migrations holds no migration"
    return revision


def check(database: Database) -> None:
    """Raise SchemaOutdated unless the database is at `head()`."""
    found, wanted = _version(database), head()
    if found == wanted:
        return
    script = ScriptDirectory.from_config(_config())
    if found is None or found in {revision.revision for revision in script.walk_revisions()}:
        raise SchemaOutdated(f"{database.name} has schema {found}, this program needs {wanted}; {UPGRADE_HINT}")
    raise SchemaOutdated(
        f"{database.name} has schema {found}, which this program does not know (it needs {wanted}):"
        " it was made by a newer nightmill; update this one"
    )


def draft(message: str) -> None:
    """For developers: write the next migration from the difference between the chain and `storage.tables`."""
    with TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/draft.db"
        upgrade(url)
        database = Database(url)
        with database.write() as conn:
            config = _config()
            config.attributes["connection"] = conn
            command.revision(config, message, autogenerate=True, rev_id=f"{int(head()) + 1:04d}")
        database.close()


def _version(database: Database) -> str | None:
    with database.read() as conn:
        return MigrationContext.configure(conn).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    return config
