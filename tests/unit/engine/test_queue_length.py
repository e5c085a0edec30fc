"""What a step costs, in lines of Python that run: it must not grow with the rows that wait."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from tests.unit.engine.harness import HYBRID, LINEAR, Harness, request

FEW, MANY = 60, 6000


def lines_run(work: Callable[[], object]) -> int:
    """Lines of this thread's Python code, in `work` and all that it calls."""
    count: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        count[event] += 1
        return trace

    before = sys.gettrace()
    gc.disable()  # what others do at a collection is no work of ours
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
        gc.enable()
    return count["line"]


def costs(harness: Harness, num_waiting: int, num_samples: int) -> list[int]:
    """Of some steps in which sequences are admitted, run and end while so many rows wait."""
    for number in range(num_waiting):
        harness.scheduler.submit(request(str(number), [number % 7, 1, 2, 3, 4, number], 3, num_samples=num_samples))

    def step() -> None:
        scheduled = harness.scheduler.schedule()
        assert scheduled is not None
        harness.scheduler.update(scheduled, harness.runner.run(scheduled), 1.0)

    return [lines_run(step) for _ in range(12)]


@pytest.mark.parametrize("num_samples", [1, 2])
@pytest.mark.parametrize("groups", [HYBRID, LINEAR], ids=["hybrid", "full and states"])
def test_the_time_per_step_does_not_depend_on_the_rows_that_wait(groups: Any, num_samples: int) -> None:
    small, large = Harness(groups, max_sequences=4), Harness(groups, max_sequences=4)

    few, many = costs(small, FEW, num_samples), costs(large, MANY, num_samples)

    assert many == few
    assert large.scheduler.tally.num_finished > 4
    assert large.scheduler.num_waiting > MANY - FEW
