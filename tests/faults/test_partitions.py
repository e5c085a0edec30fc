"""Workers in their own network namespaces, cut off from SQL, from Redis, or from both, for longer than a lease."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from storage.states import ShardState
from tests.faults.harness import Harness, WorkerProcess, prompts, speed, wait_for
from tests.faults.islands import Island, island, why_not
from tests.faults.proxy import Proxy
from tests.postgres import PostgresServer

REASON = why_not()
pytestmark = [pytest.mark.integration, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

ROWS = 96


@pytest.mark.parametrize(
    "cables",
    [
        pytest.param(("SQL",), marks=pytest.mark.slow),
        pytest.param(("Redis",), marks=pytest.mark.slow),
        ("SQL", "Redis"),
    ],
    ids=["from-sql", "from-redis", "from-both"],
)
def test_49_a_worker_on_an_island(
    tmp_path: Path, postgres_url: str, postgres_server: PostgresServer, cables: tuple[str, ...]
) -> None:
    with Harness.create(tmp_path, postgres_url, worker_slots=2) as harness, ExitStack() as stack:
        islands = [stack.enter_context(island("SQL", "Redis")) for _ in range(2)]
        first, second = (
            start(harness, f"w{number}", each, postgres_server, stack) for number, each in enumerate(islands)
        )
        job = harness.submit(prompts(ROWS), shard_rows=24)
        wait_for(lambda: held_by(harness, job.id, "w0"), "the first worker has a shard")

        islands[0].cut(*cables)
        cut_at = time.monotonic()
        harness.done(job.id, ROWS)
        wait_for(lambda: time.monotonic() > cut_at + 2 * harness.settings.lease_seconds, "longer than a lease")
        islands[0].heal()
        islands[1].cut("SQL", "Redis")  # so that the first one must be of use again

        again = harness.submit(prompts(ROWS), shard_rows=24, name="again")
        harness.done(again.id, ROWS)
        assert (first.process.poll(), second.process.poll()) == (None, None)
        harness.check(job.id, {(row, 0) for row in range(ROWS)})


@pytest.mark.slow
def test_49_a_dead_link_to_sql_is_given_up_and_told(
    tmp_path: Path, postgres_url: str, postgres_server: PostgresServer
) -> None:
    with Harness.create(tmp_path, postgres_url) as harness, ExitStack() as stack:
        place = stack.enter_context(island("SQL", "Redis"))
        worker = start(harness, "w0", place, postgres_server, stack)
        job = harness.submit(prompts(ROWS), shard_rows=24)
        wait_for(lambda: held_by(harness, job.id, "w0"), "the worker has a shard")

        place.cut("SQL")
        wait_for(lambda: "heartbeat failed" in worker.text, "no thread waits for its answer for ever", seconds=40)
        place.heal()

        harness.done(job.id, ROWS)
        assert worker.process.poll() is None


def start(harness: Harness, name: str, place: Island, server: PostgresServer, stack: ExitStack) -> WorkerProcess:
    """A worker there, with a proxy to each server at this end of its cable."""
    sql = stack.enter_context(Proxy(str(server.socket), place.hosts["SQL"]))
    redis = stack.enter_context(Proxy(str(harness.broker.socket), place.hosts["Redis"]))
    database = harness.database_url.partition("?")[0].rpartition("/")[2]
    return harness.start_worker(
        name,
        within=place.within,
        NIGHTMILL_DATABASE_URL=f"postgresql://postgres:@{place.hosts['SQL']}:{sql.port}/{database}",
        NIGHTMILL_BROKER_URL=f"redis://{place.hosts['Redis']}:{redis.port}/0",
        **speed(20),
    )


def held_by(harness: Harness, job_id: int, worker: str) -> bool:
    shards = harness.repository.shards(job_id)  # type: ignore[arg-type]
    running = [shard for shard in shards if shard.state is ShardState.RUNNING]
    return any(str(shard.lease_owner).startswith(f"{worker}@") for shard in running)
