"""A long run of the state machine of the scheduler, with other moves every time; a failure tells its moves or seed."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.unit.engine.scheduler_machine import SchedulerMachine, walk


@pytest.mark.slow
def test_any_order_of_moves_keeps_the_laws_for_long() -> None:
    num_steps: list[int] = []

    run_state_machine_as_test(
        lambda: SchedulerMachine(num_steps.append),
        settings=settings(
            max_examples=400,
            stateful_step_count=80,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )

    assert sum(num_steps) > 20_000


@pytest.mark.slow
def test_random_moves_keep_the_laws_for_long() -> None:
    first = random.SystemRandom().randrange(2**32)
    num_steps = 0

    for seed in range(first, first + 1500):
        print(f"seed {seed}")  # shown when it fails
        num_steps += walk(seed)

    assert num_steps > 400_000
