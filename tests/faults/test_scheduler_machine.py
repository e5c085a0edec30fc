"""Whatever happens in whatever order: tokens are the reference's, hits the longest there are, nothing is left over."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.unit.engine.scheduler_machine import SchedulerMachine, walk


@pytest.mark.timeout(900)  # a failure is made smaller for up to five minutes
def test_any_order_of_moves_keeps_the_laws() -> None:
    num_steps: list[int] = []

    run_state_machine_as_test(
        lambda: SchedulerMachine(num_steps.append),
        settings=settings(
            max_examples=330,
            stateful_step_count=40,
            derandomize=True,  # the long run has other moves every time
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )

    assert sum(num_steps) > 10_000


def test_random_moves_keep_the_laws() -> None:
    num_steps = [walk(seed) for seed in range(40)]

    assert sum(num_steps) > 10_000
