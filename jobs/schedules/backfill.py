"""Which labels of a range are still to be done. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal

from jobs.schedules.cron import Slot
from storage.schedule_records import NewRun, NewSchedule, Run
from storage.states import RUN_FINAL, RunState

Which = Literal["missing", "errored", "all"]
Order = Literal["forwards", "backwards"]

_MISSING = frozenset({RunState.MISSED, RunState.SKIPPED})
AGAIN: Mapping[Which, frozenset[RunState]] = {
    "missing": _MISSING,
    "errored": RUN_FINAL - {RunState.SUCCEEDED},
    "all": RUN_FINAL,
}
"""Ends after which a label is done again; a label without a run is always done, one with an open run never."""


def backfill_key(declared: NewSchedule, first: str, last: str, which: Which) -> str:
    """The same backfill of an unchanged schedule has the same key: repeating it does nothing a second time."""
    text = json.dumps([asdict(declared), first, last, which], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def choose(slots: Sequence[Slot], runs: Mapping[str, Run], which: Which, key: str) -> list[Slot]:
    """The slots of a range that this backfill would run. `runs`: those that there are, by label and by slot, since the
    form of labels may have changed.

    `all` leaves out what the same backfill has done; `errored` is meant to try again what failed."""

    def wanted(run: Run | None) -> bool:
        return run is None or (run.state in AGAIN[which] and (which != "all" or run.backfill != key))

    return [slot for slot in slots if wanted(runs.get(slot.label) or runs.get(slot.name))]


def queued(slots: Sequence[Slot], *, key: str, order: Order, max_active: int) -> list[NewRun]:
    """The runs to queue, in the order in which they start."""
    ordered = list(slots) if order == "forwards" else list(slots)[::-1]
    return [
        NewRun(
            label=slot.label,
            slot=slot.name,
            logical_time=slot.instant.timestamp(),
            state=RunState.QUEUED,
            cause="backfill",
            max_active=max_active,
            rank=rank,
            backfill=key,
        )
        for rank, slot in enumerate(ordered)
    ]
