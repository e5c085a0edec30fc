"""Row 23: a disk that is full for a while. (Others: README.md.)"""

from __future__ import annotations

import pytest

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
