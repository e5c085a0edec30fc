"""How an attempt ended, as Flower shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from storage.records import RunStats


class Ending(StrEnum):
    DONE = "done"
    DROPPED = "dropped"  # somebody else has the shard, or it is done: a doubled or late hint
    DUPLICATE = "duplicate"  # this very process is working on it
    FENCED = "fenced"  # a newer epoch owns the shard
    PREEMPTED = "preempted"  # this worker is stopping, or the task was revoked
    CANCELLED = "cancelled"  # the job was cancelled
    PAUSED = "paused"  # the job was paused


class ShardFailed(Exception):
    """An attempt failed; SQL has the reason and when to try again. The message is plain text, safe for JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """`stats` are of the rows that this attempt sealed; `seconds` its wall-clock time."""

    ending: Ending
    stats: RunStats = field(default_factory=RunStats)
    seconds: float = 0.0

    def __str__(self) -> str:
        prompt = self.stats.prompt_tokens
        cached = f"{100 * self.stats.cached_tokens / prompt:.0f}%" if prompt else "-"
        speed = f"{self.stats.completion_tokens / self.seconds:.0f}" if self.seconds else "-"
        line = f"rows={self.stats.rows} cached={cached} tok/s={speed}"
        match self.ending:
            case Ending.DONE:
                return line
            case Ending.DROPPED | Ending.DUPLICATE:
                return str(self.ending)
            case _:
                return f"{self.ending} {line}"
