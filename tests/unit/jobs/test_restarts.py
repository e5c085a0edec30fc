"""A worker that fails is started again with growing pauses, and not for ever."""

from __future__ import annotations

import pytest

from jobs.restarts import EXIT_ENGINE_DEAD, EXIT_MODEL, HEALTHY_SECONDS, MAX_PAUSE_SECONDS, Restarts


def ended(code: int, *, lived: float, times: int) -> Restarts:
    restarts = Restarts(pause_seconds=1.0, most=5)
    for _ in range(times):
        restarts.ended(code, lived, now=100.0)
    return restarts


@pytest.mark.parametrize("code", [1, 8, -9, EXIT_MODEL])
def test_five_quick_failures_are_forgiven_with_doubled_pauses_and_the_sixth_is_not(code: int) -> None:
    fifth, sixth = ended(code, lived=1.0, times=5), ended(code, lived=1.0, times=6)

    assert (fifth.spent, sixth.spent) == (False, True)
    assert fifth.start_at == 116.0


def test_a_long_life_or_a_good_end_starts_the_count_again() -> None:
    restarts = ended(1, lived=1.0, times=5)

    restarts.ended(1, HEALTHY_SECONDS + 1, now=100.0)
    assert (restarts.failures, restarts.start_at) == (1, 101.0)
    restarts.ended(0, 1.0, now=100.0)
    assert restarts.failures == 0


def test_a_model_that_is_refused_after_a_long_load_counts_as_a_quick_failure() -> None:
    assert ended(EXIT_MODEL, lived=HEALTHY_SECONDS + 1, times=6).spent


def test_a_good_end_has_a_pause_as_well_and_no_pause_is_too_long() -> None:
    assert ended(0, lived=0.0, times=1).start_at == 101.0
    assert ended(1, lived=0.0, times=20).start_at == 100.0 + MAX_PAUSE_SECONDS


@pytest.mark.parametrize(("code", "was_ready"), [(-9, True), (EXIT_ENGINE_DEAD, False)])
def test_a_worker_that_dies_at_work_had_a_good_start(code: int, was_ready: bool) -> None:
    restarts = ended(1, lived=1.0, times=4)

    for _ in range(9):
        restarts.ended(code, 1.0, now=100.0, was_ready=was_ready)

    assert (restarts.failures, restarts.spent) == (1, False)
