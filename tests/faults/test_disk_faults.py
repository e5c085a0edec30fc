"""Rows 23 and 24: disks that are full for a while, of the output and of the record."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from storage.errors import DatabaseDown
from tests.faults.disks import runs_elsewhere, small_disk
from tests.faults.harness import Harness, prompts, speed, wait_for

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("point", ["segment.before_fsync", "commit.before_fsync", "rename.before"])
def test_23_a_full_disk_gives_the_shard_back_and_counts_no_crash(harness: Harness, point: str) -> None:
    worker = harness.start_worker("w0", NIGHTMILL_FAILPOINTS=f"{point}:full", **speed(60))
    job = harness.submit(prompts(24), shard_rows=24)

    wait_for(lambda: harness.shards(job.id)[0].preemptions == 1, "the shard is given back")
    released = harness.shards(job.id)[0]
    sql = "UPDATE shards SET not_before = 0"  # the shard waits for half a minute: somebody makes room sooner
    with harness.repository._db.write() as conn:
        conn.exec_driver_sql(sql)

    harness.done(job.id, 24)
    assert released.crashes == 0
    assert released.error is not None
    assert "No space left on device" in released.error
    assert worker.process.poll() is None


@pytest.mark.slow
def test_23_a_disk_of_the_output_that_is_really_full(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if runs_elsewhere(request.node.nodeid):
        return
    with small_disk(tmp_path / "small", 20) as disk, Harness.create(tmp_path, disk_reserve_bytes=0) as harness:
        worker = harness.start_worker("w0", NIGHTMILL_FULL_DISK_SECONDS="0.5", **speed(30))
        job = harness.submit(prompts(96), shard_rows=48, name="small/out")
        harness.wait_for_rows(job.id, 8)

        disk.fill()
        wait_for(lambda: "disk_full" in worker.text, "the worker notices")
        disk.empty()

        harness.done(job.id, 96)
        assert {shard.crashes for shard in harness.shards(job.id)} == {0}


def test_24_a_full_disk_of_sqlite_alone_stops_claims_and_loses_nothing(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if runs_elsewhere(request.node.nodeid):
        return
    reserve = {"disk_reserve_bytes": 1 << 20}
    with small_disk(tmp_path / "small", 8) as disk:
        path = disk.folder / "nightmill.db"
        with Harness.create(tmp_path, f"sqlite:///{path}", **reserve) as harness:
            worker = harness.start_worker("w0", **speed(20))
            job = harness.submit(prompts(80), shard_rows=16)
            harness.wait_for_rows(job.id, 8)

            disk.fill()
            wait_for(lambda: "segment waits" in worker.text and "heartbeat failed" in worker.text, "SQL takes nothing")
            with pytest.raises(DatabaseDown, match="is full; make room"):
                write_much(harness)
            epochs = [shard.epoch for shard in harness.shards(job.id)]
            disk.free(kilobytes=512)
            wait_for(lambda: f"disk_low path={disk.folder}" in worker.text, "claims stop")
            with closing(sqlite3.connect(path)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert 0 in epochs
            assert [shard.epoch for shard in harness.shards(job.id)] == epochs
            disk.empty()

            harness.done(job.id, 80)
            assert worker.process.poll() is None
            assert {shard.crashes for shard in harness.shards(job.id)} == {0}


def write_much(harness: Harness) -> None:
    with harness.repository._db.write() as conn:
        conn.exec_driver_sql("CREATE TABLE much (content BLOB)")
        conn.exec_driver_sql("INSERT INTO much VALUES (zeroblob(1000000))")
