"""When a worker process that has ended is started again: after growing pauses, and a few times in a row at most."""

from __future__ import annotations

from dataclasses import dataclass

EXIT_MODEL = 78  # the worker cannot serve its model as it is set up: starting it again would not help
HEALTHY_SECONDS = 60.0  # a worker that lived this long had a good start
MAX_PAUSE_SECONDS = 60.0


@dataclass(slots=True)
class Restarts:
    """What is known of one worker's starts. `start_at` is on the monotonic clock."""

    pause_seconds: float  # after the first failure; it doubles with each one
    most: int  # in a row
    failures: int = 0  # in a row
    start_at: float = 0.0  # not before

    def ended(self, code: int, lived: float, now: float) -> None:
        """The worker ended with this code. A long life is no good start where the model is refused after its load."""
        if code == 0:
            self.failures = 0
        elif code != EXIT_MODEL and lived > HEALTHY_SECONDS:
            self.failures = 1
        else:
            self.failures += 1
        self.start_at = now + min(self.pause_seconds * 2.0 ** max(self.failures - 1, 0), MAX_PAUSE_SECONDS)

    @property
    def spent(self) -> bool:
        """It was started again often enough."""
        return self.failures > self.most
