"""When a worker process that has ended is started again: after growing pauses, and a few times in a row at most."""

from __future__ import annotations

from dataclasses import dataclass

EXIT_ENGINE_DEAD = 70  # the engine died or hung, after a good start
EXIT_DRAINED = 79  # of a worker with a supervisor: it was asked to leave and is not to be started again
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

    def ended(self, code: int, lived: float, now: float, *, was_ready: bool = False) -> None:
        """The worker ended with this code. A long life is no good start where the model is refused after its load.

        One that took shards had a good start, however soon it died: how many may die of a job is the job's to say.
        """
        if code == 0:
            self.failures = 0
        elif code != EXIT_MODEL and (lived > HEALTHY_SECONDS or was_ready or code == EXIT_ENGINE_DEAD):
            self.failures = 1
        else:
            self.failures += 1
        self.start_at = now + min(self.pause_seconds * 2.0 ** max(self.failures - 1, 0), MAX_PAUSE_SECONDS)

    @property
    def spent(self) -> bool:
        """It was started again often enough."""
        return self.failures > self.most
