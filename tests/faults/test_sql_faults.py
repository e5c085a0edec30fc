"""Rows 18 to 22, 42 to 44 and 49: a database that stops, cuts, locks and jumps, and the links to it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import select

from storage.records import JobId
from storage.states import JobState, ShardState
from storage.tables import attempts
from tests.faults.clocks import ShiftedClock
from tests.faults.harness import Harness, WorkerProcess, is_stopped, prompts, speed, wait_for
from tests.faults.proxy import DOWN, UP, Proxy
from tests.postgres import PostgresServer

pytestmark = pytest.mark.integration

ROWS = 96


@dataclass(slots=True)
class Linked:
    """A harness on PostgreSQL whose worker reaches it through a proxy."""

    harness: Harness
    proxy: Proxy
    url: str

    def worker(self, name: str, **environment: str) -> WorkerProcess:
        return self.harness.start_worker(name, NIGHTMILL_DATABASE_URL=self.url, **environment)


@pytest.fixture
def linked(tmp_path: Path, postgres_url: str, postgres_server: PostgresServer) -> Iterator[Linked]:
    name = postgres_url.partition("?")[0].rpartition("/")[2]
    with (
        Harness.create(tmp_path, postgres_url, worker_slots=2, max_shard_attempts=20) as harness,
        Proxy(str(postgres_server.socket)) as proxy,
    ):
        yield Linked(harness, proxy, f"postgresql://postgres:@127.0.0.1:{proxy.port}/{name}")


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_18_a_database_that_restarts(harness_on_postgres: Harness, postgres_server: PostgresServer, mode: str) -> None:
    harness = harness_on_postgres
    worker = harness.start_worker("w0", **speed(40))
    job = harness.submit(prompts(ROWS), shard_rows=12)
    harness.wait_for_rows(job.id, 12)

    postgres_server.restart(mode)

    harness.done(job.id, ROWS)
    assert worker.process.poll() is None


def test_19_a_database_that_is_away_for_longer_than_a_lease(linked: Linked) -> None:
    harness = linked.harness
    harness.stop_reconciler()  # it would reach the database, and take what the worker cannot hold
    harness.start_reconciler_process("r", NIGHTMILL_DATABASE_URL=linked.url)
    worker = linked.worker("w0", **speed(20))
    job = harness.submit(prompts(ROWS), shard_rows=48)
    harness.wait_for_rows(job.id, 12)

    linked.proxy.down()
    made = _made(harness)
    wait_for(lambda: _made(harness) >= made + 20, "the worker goes on computing")
    since = time.monotonic()
    wait_for(lambda: time.monotonic() - since > harness.settings.lease_seconds, "the lease is over")
    linked.proxy.heal()

    harness.done(job.id, ROWS)
    assert {(shard.attempts, shard.crashes) for shard in harness.shards(job.id)} == {(1, 0)}
    assert worker.process.poll() is None


def test_20_a_commit_whose_answer_is_lost(linked: Linked) -> None:
    harness = linked.harness
    worker = linked.worker("w0", **speed(60))
    job = harness.submit(prompts(ROWS), shard_rows=8)
    harness.wait_for_rows(job.id, 8)

    for rows in range(8, ROWS - 8, 8):
        harness.wait_for_rows(job.id, rows)
        linked.proxy.cut_after(UP, b"COMMIT")
        wait_for(lambda cuts=linked.proxy.cuts: linked.proxy.cuts > cuts, "a commit is cut")

    harness.done(job.id, ROWS)
    assert linked.proxy.cuts == 10
    assert worker.process.poll() is None


def test_21_three_reconcilers_and_locks_that_time_out(tmp_path: Path, postgres_url: str) -> None:
    impatient = f"{postgres_url}&options=-c%20lock_timeout%3D30ms%20-c%20deadlock_timeout%3D10ms"
    with Harness.create(tmp_path, postgres_url) as harness:
        reconcilers = [harness.start_reconciler_process(f"r{i}", NIGHTMILL_DATABASE_URL=impatient) for i in range(3)]
        harness.start_worker("w0", NIGHTMILL_DATABASE_URL=impatient, **speed(60))
        job = harness.submit(prompts(ROWS), shard_rows=8)

        with psycopg.connect(postgres_url) as holder:
            while harness.job(job.id).rows_done < ROWS // 2:
                holder.execute("SELECT * FROM jobs FOR UPDATE")
                holder.execute("SELECT * FROM shards FOR UPDATE")
                holder.execute("SELECT pg_sleep(0.1)")
                holder.rollback()
                holder.execute("SELECT pg_sleep(0.1)")

        harness.done(job.id, ROWS)
        assert all(process.process.poll() is None for process in reconcilers)


LOCK = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE shards SET epoch = epoch + 100, error = 'half done'")
print("locked", flush=True)
time.sleep(600)
"""


def test_22_a_writer_of_sqlite_that_locks_and_is_killed(harness: Harness) -> None:
    harness.start_worker("w0", **speed(40))
    job = harness.submit(prompts(ROWS), shard_rows=12)
    harness.wait_for_rows(job.id, 12)
    command = [sys.executable, "-c", LOCK, str(harness.folder / "harness.db")]

    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"locked\n"
        made = _made(harness)
        wait_for(lambda: _made(harness) >= made + 10, "the worker goes on computing")
        writer.kill()

    harness.done(job.id, ROWS)
    with sqlite3.connect(harness.folder / "harness.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Harness]:
    """Its workers do not speak, so that one that stops itself is within no transaction of its heartbeat."""
    with Harness.create(tmp_path, heartbeat_seconds=60.0, lease_seconds=120.0) as started:
        yield started


@pytest.mark.parametrize("wins", ["cancel", "commit"])
def test_42_a_cancel_against_a_commit(silent: Harness, wins: str) -> None:
    harness = silent
    point = "commit.before_sql" if wins == "cancel" else "commit.after_sql"
    worker = harness.start_worker("w0", NIGHTMILL_FAILPOINTS=f"{point}:stop")
    harness.stop_reconciler()
    job = harness.submit(prompts(8), shard_rows=8)
    harness.repository.dispatch(None, 8, 1000.0)
    harness.start_reconciler()
    wait_for(lambda: is_stopped(worker.process.pid), "the worker stands at its commit")

    harness.repository.request_cancel(job.id)
    worker.process.send_signal(signal.SIGCONT)

    ended = harness.wait_for_end(job.id)
    table = harness.check(job.id, {(i, 0) for i in range(8)})
    states = {shard.state for shard in harness.shards(job.id)}
    assert table["status"].to_pylist() == ["succeeded"] * 8  # every row had been sealed before
    if wins == "commit":
        assert (ended.state, states) == (JobState.COMPLETED, {ShardState.DONE})
    else:
        assert ended.state is JobState.CANCELLED
        assert states <= {ShardState.DONE, ShardState.CANCELLED}


@pytest.mark.parametrize("hours", [1, -1])
def test_43_a_worker_whose_clock_is_an_hour_off(tmp_path: Path, postgres_url: str, hours: int) -> None:
    clock = ShiftedClock(tmp_path)
    clock.shift(3600 * hours)
    with Harness.create(tmp_path, postgres_url) as harness:
        harness.start_worker("w0", **clock.environment, **speed(60))
        harness.start_worker("w1", **speed(60))
        job = harness.submit(prompts(ROWS), shard_rows=12)

        harness.done(job.id, ROWS)

        assert {(shard.attempts, shard.crashes) for shard in harness.shards(job.id)} == {(1, 0)}


@pytest.fixture
def jumping() -> Iterator[tuple[ShiftedClock, str]]:
    """A clock, and an empty database on a server of its own that reads it."""
    with tempfile.TemporaryDirectory(prefix="nm-pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        clock = ShiftedClock(folder)
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in clock.environment.items():
                patch.setenv(variable, value)
            server = PostgresServer(folder)
        yield clock, server.new_database()
        clock.shift(0)
        server.stop()


def test_44_a_database_whose_clock_jumps(tmp_path: Path, jumping: tuple[ShiftedClock, str]) -> None:
    clock, url = jumping
    with Harness.create(tmp_path, url, max_shard_attempts=50) as harness:
        harness.start_worker("w0", **speed(40))
        job = harness.submit(prompts(ROWS), shard_rows=12)

        for rows, seconds in ((12, 3600), (36, 7200), (60, 5000)):
            harness.wait_for_rows(job.id, rows)
            clock.shift(seconds)
            assert abs(_database_time(url) - time.time() - seconds) < 30

        harness.wait_for_end(job.id)
        harness.check(job.id, {(i, 0) for i in range(ROWS)}, seconds=8000)


@pytest.mark.parametrize("side", ["SQL", "Redis"])
def test_49_a_worker_that_loses_one_of_its_servers(linked: Linked, side: str) -> None:
    harness = linked.harness
    with Proxy(str(harness.broker.socket)) as broker:
        url = f"redis://127.0.0.1:{broker.port}/0"
        cut_off = linked.worker("w0", NIGHTMILL_BROKER_URL=url, **speed(40))
        job = harness.submit(prompts(ROWS), shard_rows=24)
        harness.wait_for_rows(job.id, 8)
        proxy = linked.proxy if side == "SQL" else broker

        proxy.dropped = {UP, DOWN}
        proxy.reset()
        harness.start_worker("w1", **speed(40))
        harness.done(job.id, ROWS)
        proxy.heal()

        assert cut_off.process.poll() is None
        second = harness.submit(prompts(ROWS), shard_rows=8, name="second")
        harness.done(second.id, ROWS)
        owners = {owner.partition("@")[0] for owner in _owners(harness, second.id)}
        assert "w0" in owners or side == "SQL"


def _made(harness: Harness) -> int:
    """Results that the engines have made."""
    return len(harness.trace.read_bytes().splitlines()) if harness.trace.exists() else 0


def _database_time(url: str) -> float:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT extract(epoch FROM clock_timestamp())").fetchone()
    assert found is not None
    return float(found[0])


def _owners(harness: Harness, job_id: JobId) -> set[str]:
    with harness.repository._db.read() as conn:
        return set(conn.scalars(select(attempts.c.owner).where(attempts.c.job_id == job_id)))
