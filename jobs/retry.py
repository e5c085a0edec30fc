"""What happens to a shard after a failed attempt: a pure table. SQL records the decision; Celery only carries hints."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from engine.errors import EngineDead
from storage.errors import DatabaseDown

MAX_DELAY_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after `in_seconds`. `preempted`: the attempt failed for a reason that is not the shard's own;
    `crashed`: it may have killed its engine."""

    in_seconds: float
    preempted: bool
    crashed: bool = False


def is_full_disk(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def decide(error: BaseException, attempt: int, *, base_seconds: float = 1.0, full_disk_seconds: float = 30.0) -> Retry:
    """`attempt` counts from 1. A full disk is nobody's fault, and neither is a stop while SQL is down, which alone ends
    an attempt with DatabaseDown; everything else backs off and counts."""
    if is_full_disk(error):
        return Retry(full_disk_seconds, preempted=True)
    if isinstance(error, DatabaseDown):
        return Retry(0.0, preempted=True)
    pause = min(base_seconds * 2.0 ** (attempt - 1), MAX_DELAY_SECONDS)
    return Retry(pause, preempted=False, crashed=isinstance(error, EngineDead))
