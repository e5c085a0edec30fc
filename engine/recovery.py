"""What the engine does when a step fails: run less at once, and in the end blame the one sequence that runs alone."""

from __future__ import annotations

import logging
from enum import Enum

from engine.step import Step

log = logging.getLogger(__name__)

FEWEST_TOKENS = 16  # of a step, below which a sequence that does not fit into memory is given up
GROW_AFTER = 200  # good steps, after which twice as much is tried again
MOST_FAILURES = 3  # requests that failed with no good step between them: then it is not the requests


class Trouble(Enum):
    MEMORY = "out_of_memory"  # the values are error codes of rows
    REQUEST = "engine_error"
    DEVICE = "device_error"  # nothing can run on it any more


def trouble_of(error: Exception) -> Trouble:
    """What an error of the runner means. Told by name and text: this module loads no torch."""
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return Trouble.MEMORY
    if isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text):
        return Trouble.MEMORY
    signs = ("CUDA error", "CUBLAS", "CUDNN", "device-side assert", "HIP error")
    if type(error).__name__ == "AcceleratorError" or any(sign in text for sign in signs):
        return Trouble.DEVICE
    return Trouble.REQUEST


class Batch:
    """The owner of how much may run in one step now. Never more than what was asked for."""

    def __init__(self, max_sequences: int, max_tokens: int, grid: int = 1) -> None:
        """`grid`: tokens that can only run together."""
        self._most = (max_sequences, max_tokens)
        self._fewest = min(max(FEWEST_TOKENS, grid), max_tokens)
        self.max_sequences = max_sequences
        self.max_tokens = max_tokens
        self._good_steps = 0
        self._failed: set[str] = set()  # requests since the last good step

    def went_well(self) -> bool:
        """A step has run; True when more may run from now on."""
        self._failed.clear()
        if (self.max_sequences, self.max_tokens) == self._most:
            return False
        self._good_steps += 1
        if self._good_steps < GROW_AFTER:
            return False
        self._good_steps = 0
        self.max_sequences = min(2 * self.max_sequences, self._most[0])
        self.max_tokens = min(2 * self.max_tokens, self._most[1])
        return True

    def failed(self, step: Step, trouble: Trouble) -> bool:
        """The step did not run. True when less of it can be tried, False when its one sequence cannot run at all."""
        self._good_steps = 0
        num_sequences, num_tokens = len(step.chunks), step.num_tokens
        if num_sequences == 1 and (trouble is Trouble.REQUEST or num_tokens <= self._fewest):
            self.max_sequences, self.max_tokens = self._most
            return False
        if num_sequences > 1:
            self.max_sequences = num_sequences // 2
        if trouble is Trouble.MEMORY:
            self.max_tokens = max(num_tokens // 2, self.max_sequences, self._fewest)
        log.warning(
            "step_failed reason=%s sequences=%d tokens=%d now_sequences=%d now_tokens=%d",
            *(trouble.value, num_sequences, num_tokens, self.max_sequences, self.max_tokens),
        )
        return True

    def blames_too_many(self, request_id: str) -> bool:
        """This request could not run alone; True when so many in a row could not that the engine is at fault."""
        self._failed.add(request_id)
        return len(self._failed) >= MOST_FAILURES


class Timeouts:
    """Since when each sequence runs, preemptions included; waiting for the first turn does not count."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._since: dict[int, float] = {}
        self._looked_at = 0.0

    def overdue(self, running: tuple[int, ...], now: float) -> list[int]:
        """Those that run for longer than they may. Looks at most ten times within the time that they have."""
        if self._seconds is None or now - self._looked_at < self._seconds / 10:
            return []
        self._looked_at = now
        for sequence_id in running:
            self._since.setdefault(sequence_id, now)
        return [key for key in running if now - self._since[key] > self._seconds]

    def forget(self, sequence_id: int) -> None:
        self._since.pop(sequence_id, None)
