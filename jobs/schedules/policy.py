"""What becomes of slots that are due: caught up or missed, started, queued or skipped. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from jobs.schedules.cron import Slot
from storage.schedule_records import NewSchedule
from storage.states import RunState

OVERTAKEN = "a newer slot came due before this one was looked at"


@dataclass(frozen=True, slots=True)
class Decision:
    """`state`: running (at once, if its input is there), queued, skipped or missed."""

    slot: Slot
    state: RunState
    reason: str | None = None


def decide(
    due: Sequence[Slot], declared: NewSchedule, *, active: int, now: datetime, grace: timedelta
) -> list[Decision]:
    """One decision per slot that is due, in order. `active`: runs of the schedule at work or waiting for their turn.

    A slot that nobody looked at for `grace` is late: what catch-up does not ask for is missed. Overlap is a matter of
    slots that come in time; late ones that catch-up asks for wait for their turn.
    """
    late = [slot for slot in due if slot.instant < now - grace]
    caught_up = set(_caught_up(due, late, declared))
    taken = active
    decisions = []
    for slot in due:
        if slot in late and slot not in caught_up:
            decisions.append(Decision(slot, RunState.MISSED, f"nobody ticked from {slot.at} on for {grace}"))
        elif declared.overlap == "cancel_previous" and slot != due[-1]:
            decisions.append(Decision(slot, RunState.SKIPPED, OVERTAKEN))
        elif taken < declared.max_active:
            decisions.append(Decision(slot, RunState.RUNNING))
            taken += 1
        elif declared.overlap == "skip" and slot not in late:
            decisions.append(Decision(slot, RunState.SKIPPED, f"{taken} runs of the schedule were still at work"))
        else:
            decisions.append(Decision(slot, RunState.QUEUED))
            taken += 1
    return decisions


def _caught_up(due: Sequence[Slot], late: Sequence[Slot], declared: NewSchedule) -> Sequence[Slot]:
    match declared.catch_up:
        case "none":
            return ()
        case "latest":
            return [slot for slot in due[-1:] if slot in late]
        case "all":
            return late[-declared.catch_up_limit :]
