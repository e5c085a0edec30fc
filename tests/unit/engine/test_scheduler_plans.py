"""What the scheduler makes of plans and of several samples where something comes in between."""

from __future__ import annotations

from typing import Any

from tests.unit.engine.harness import Harness, request


class NeverWalked(dict[Any, Any]):
    def __iter__(self) -> Any:
        raise AssertionError("somebody looks at everyone who waits")

    items = values = keys = __iter__


def test_a_step_does_not_look_at_the_samples_of_rows_that_wait() -> None:
    harness = Harness(max_sequences=4)
    for number in range(20):
        harness.scheduler.submit(request(str(number), [number, 1], num_samples=2))
    harness.scheduler._forks._followers = NeverWalked(harness.scheduler._forks._followers)

    for _ in range(5):
        step = harness.scheduler.schedule()
        assert step is not None
        harness.scheduler.update(step, harness.runner.run(step), 1.0)

    assert harness.scheduler.num_running
