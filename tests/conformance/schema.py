"""Laws of schema versions that hold on every database. `empty_url` is a database without tables."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from storage import migrate
from storage.database import Database
from storage.errors import SchemaOutdated
from storage.repository import Repository
from storage.tables import metadata


def test_the_chain_of_migrations_equals_the_tables(empty_url: str) -> None:
    migrate.upgrade(empty_url)

    database = Database(empty_url)
    with database.read() as conn:
        differences = compare_metadata(MigrationContext.configure(conn), metadata)
    database.close()

    assert differences == []


def test_an_upgrade_can_be_repeated(empty_url: str) -> None:
    for _ in range(2):
        migrate.upgrade(empty_url)

    assert migrate.current(empty_url) == migrate.head()
    repository = Repository(empty_url)
    repository.check_schema()
    assert repository.list_jobs() == []
    repository.close()


def test_an_empty_database_is_told_apart_from_a_current_one(empty_url: str) -> None:
    Database(empty_url, create=True).close()
    repository = Repository(empty_url)

    with pytest.raises(SchemaOutdated, match=r"schema None.*run `nightmill db upgrade`"):
        repository.check_schema()
    with pytest.raises(SchemaOutdated, match="run `nightmill db upgrade`"):
        repository.list_jobs()
    assert migrate.current(empty_url) is None
    repository.close()


def test_a_database_of_a_newer_program_is_refused(empty_url: str) -> None:
    migrate.upgrade(empty_url)
    database = Database(empty_url)
    with database.write() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    repository = Repository(empty_url)

    with pytest.raises(SchemaOutdated, match=r"9999.*newer nightmill; update this one"):
        repository.check_schema()
    repository.close()
