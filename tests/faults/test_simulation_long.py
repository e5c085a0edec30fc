"""Many schedules, other ones every time, also on the real repository; a failure tells its seed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.simulation import DEATHS_AND_ROT, Schedule
from tests.faults.world import memory_world, real_world


@pytest.mark.slow
def test_a_hundred_thousand_schedules_break_no_law() -> None:
    world, first = memory_world(), random.SystemRandom().randrange(2**32)
    print(f"first seed {first}")

    num_faults = sum(Schedule(world, seed).run().total() for seed in range(first, first + 100_000))

    assert num_faults > 500_000


@pytest.mark.slow
def test_thirty_thousand_schedules_of_deaths_and_rotten_files_break_no_law() -> None:
    world, first = memory_world(), random.SystemRandom().randrange(2**32)
    world.max_crashes = 50
    print(f"first seed {first}")

    schedules = (Schedule(world, seed, DEATHS_AND_ROT, rate=0.1) for seed in range(first, first + 30_000))
    num_faults = sum(schedule.run().total() for schedule in schedules)

    assert num_faults > 100_000


@pytest.mark.slow
def test_a_thousand_schedules_break_no_law_of_the_real_repository(tmp_path: Path) -> None:
    world, first = real_world(tmp_path), random.SystemRandom().randrange(2**32)
    print(f"first seed {first}")

    num_faults = sum(Schedule(world, seed).run().total() for seed in range(first, first + 1000))
    world.max_crashes = 50
    schedules = (Schedule(world, seed, DEATHS_AND_ROT, rate=0.1) for seed in range(first, first + 300))
    num_faults += sum(schedule.run().total() for schedule in schedules)

    assert num_faults > 5000
