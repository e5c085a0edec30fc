from __future__ import annotations

import errno

import pytest

from engine.errors import EngineDead
from jobs.retry import MAX_DELAY_SECONDS, Retry, decide


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_not_the_shard_s_fault(code: int) -> None:
    assert decide(OSError(code, "full"), 3, full_disk_seconds=9.0) == Retry(9.0, preempted=True)


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EIO, "bad disk"), MemoryError()])
def test_any_other_failure_counts_and_backs_off(error: BaseException) -> None:
    assert decide(error, 1) == Retry(1.0, preempted=False)
    assert decide(error, 4, base_seconds=0.5) == Retry(4.0, preempted=False)


def test_an_engine_that_died_may_have_died_of_the_shard() -> None:
    assert decide(EngineDead("CUDA error"), 2) == Retry(2.0, preempted=False, crashed=True)


def test_the_pause_has_an_end() -> None:
    assert decide(ValueError("x"), 60).in_seconds == MAX_DELAY_SECONDS
