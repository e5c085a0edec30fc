"""What the repository does when PostgreSQL goes away under it."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from storage import migrate
from storage.database import Database
from storage.errors import DatabaseDown
from storage.repository import Repository
from storage.states import ShardState
from tests.conformance.samples import LEASE, claimed, finish, queued_job, shard_now

pytestmark = pytest.mark.integration

CUT_ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> %s"


@pytest.fixture
def repository(postgres_url: str) -> Iterator[Repository]:
    migrate.upgrade(postgres_url)
    repository = Repository(postgres_url)
    yield repository
    repository.close()


def cut_connections(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(CUT_ALL, [connection.info.backend_pid])


def test_connections_that_were_cut_between_two_calls_are_not_noticed(repository: Repository, postgres_url: str) -> None:
    job = queued_job(repository, num_shards=1)
    shard = claimed(repository, repository.shards(job.id)[0]).shard

    cut_connections(postgres_url)
    finish(repository, shard)

    assert shard_now(repository, shard).state == ShardState.DONE


def test_a_connection_cut_within_a_transaction_leaves_nothing_of_it(repository: Repository, postgres_url: str) -> None:
    job = queued_job(repository, num_shards=1)
    database = Database(postgres_url)

    def half_done() -> None:
        with database.write() as conn:
            conn.exec_driver_sql("UPDATE shards SET epoch = 99")
            cut_connections(postgres_url)
            conn.exec_driver_sql("UPDATE shards SET epoch = 100")

    with pytest.raises(DatabaseDown, match="does not answer"):
        half_done()

    database.close()
    assert repository.shards(job.id)[0].epoch == 0


def test_a_stopped_process_cannot_hold_its_locks_for_ever(postgres_url: str) -> None:
    database = Database(postgres_url)

    with database.read() as conn:
        limit = conn.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar()

    database.close()
    assert limit == "1min"


def test_a_lease_is_judged_by_the_clock_of_the_database(repository: Repository, postgres_url: str) -> None:
    job = queued_job(repository, num_shards=1)
    shard = claimed(repository, repository.shards(job.id)[0]).shard

    with psycopg.connect(postgres_url, autocommit=True) as connection:
        left = connection.execute(
            "SELECT lease_until - extract(epoch FROM clock_timestamp()) FROM shards WHERE id = %s", [shard.id]
        ).fetchone()

    assert left is not None
    assert LEASE - 30 < left[0] <= LEASE
