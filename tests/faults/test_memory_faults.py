"""Row 37: a worker that takes more memory than there is."""

from __future__ import annotations

import signal

import pytest

from storage.states import ShardState
from tests.faults.harness import Harness, prompts, speed
from tests.faults.limits import more_memory

pytestmark = pytest.mark.integration


def test_37_a_worker_that_the_kernel_kills_for_its_memory_crashed_and_its_rows_are_not_poison(harness: Harness) -> None:
    worker = harness.start_worker("w0", FAKE_ENGINE_EATS="8", **speed(40))
    job = harness.submit(prompts(48), shard_rows=16)
    harness.wait_for_rows(job.id, 1)

    with more_memory(worker.process.pid, 64) as kernel_kills:
        code = worker.process.wait(60)
    harness.start_worker("w1")

    harness.done(job.id, 48)
    shards = harness.shards(job.id)
    assert code == -signal.SIGKILL if kernel_kills else code != 0
    assert max(shard.crashes for shard in shards) == 1 or not kernel_kills
    assert {shard.state for shard in shards} == {ShardState.DONE}
    assert harness.job(job.id).rows_succeeded == 48
