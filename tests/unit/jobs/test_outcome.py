from __future__ import annotations

from jobs.outcome import Ending, Outcome
from storage.records import RunStats

STATS = RunStats(rows=256, prompt_tokens=1000, cached_tokens=810, computed_tokens=190, completion_tokens=824)


def test_a_committed_attempt_shows_rows_hit_rate_and_speed() -> None:
    assert str(Outcome(ending=Ending.DONE, stats=STATS, seconds=2.0)) == "rows=256 cached=81% tok/s=412"


def test_other_endings_are_named() -> None:
    assert str(Outcome(ending=Ending.DROPPED)) == "dropped"
    assert str(Outcome(ending=Ending.DUPLICATE)) == "duplicate"
    assert str(Outcome(ending=Ending.PREEMPTED, stats=STATS, seconds=2.0)).startswith("preempted rows=256")


def test_an_attempt_without_prompts_has_no_hit_rate() -> None:
    assert str(Outcome(ending=Ending.DONE)) == "rows=0 cached=- tok/s=-"
