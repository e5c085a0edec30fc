"""What the engine tells about itself: totals over its life, and block use per job."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.request import Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockUse:
    """Blocks that one job has in use in one layer group, over the steps in which it had any."""

    peak: float = 0.0
    mean: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTotals:
    """Everything since the engine was built. Prompt tokens = cached + computed, as in `Counters`."""

    num_steps: int = 0
    num_requests: int = 0  # requests submitted, refused ones included
    num_finished: int = 0  # sequences that ended, however
    step_tokens: int = 0  # tokens that went through the model
    cached_tokens: int = 0
    computed_tokens: int = 0
    completion_tokens: int = 0
    forked_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    schedule_seconds: float = 0.0
    run_seconds: float = 0.0
    update_seconds: float = 0.0
    mean_sequences: float = 0.0  # sequences per step
    mean_occupancy: float = 0.0  # of that, the share of max_sequences

    @property
    def seconds(self) -> float:
        return self.schedule_seconds + self.run_seconds + self.update_seconds


class Tally:
    """The running sums behind `EngineTotals`. Tokens are added when their sequence ends."""

    __slots__ = (
        "counters",
        "num_finished",
        "num_requests",
        "num_steps",
        "run_seconds",
        "schedule_seconds",
        "sequence_steps",
        "step_tokens",
        "update_seconds",
    )

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_requests = 0
        self.num_finished = 0
        self.step_tokens = 0
        self.sequence_steps = 0
        self.schedule_seconds = 0.0
        self.run_seconds = 0.0
        self.update_seconds = 0.0
        self.counters = Counters()

    def add(self, counters: Counters) -> None:
        """Enter one sequence that has ended. Its groups are summed up per job, in the completions, not here."""
        self.num_finished += 1
        self.counters = self.counters + replace(counters, groups=())

    def totals(self, max_sequences: int) -> EngineTotals:
        tokens = self.counters
        mean_sequences = self.sequence_steps / self.num_steps if self.num_steps else 0.0
        return EngineTotals(
            num_steps=self.num_steps,
            num_requests=self.num_requests,
            num_finished=self.num_finished,
            step_tokens=self.step_tokens,
            cached_tokens=tokens.cached_tokens,
            computed_tokens=tokens.computed_tokens,
            completion_tokens=tokens.completion_tokens,
            forked_tokens=tokens.forked_tokens,
            recomputed_tokens=tokens.recomputed_tokens,
            preemptions=tokens.preemptions,
            schedule_seconds=self.schedule_seconds,
            run_seconds=self.run_seconds,
            update_seconds=self.update_seconds,
            mean_sequences=mean_sequences,
            mean_occupancy=mean_sequences / max_sequences,
        )
