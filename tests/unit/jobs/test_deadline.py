from __future__ import annotations

import pytest

from jobs.deadline import Deadline, parse_deadline


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("90m", 5400), ("24h", 86_400), ("1d12h", 129_600), ("1.5h", 5400)]
)
def test_a_duration_counts_from_the_submission(text: str, seconds: float) -> None:
    assert parse_deadline(text) == Deadline(seconds=seconds)


@pytest.mark.parametrize("text", ["1970-01-02T00:00Z", "1970-01-02 01:00:00+01:00"])
def test_a_moment_is_told_with_its_zone(text: str) -> None:
    assert parse_deadline(text) == Deadline(at=86_400)


@pytest.mark.parametrize(
    ("text", "told"), [("tomorrow", "write a duration"), ("24", "write a duration"), ("2026-12-01T06:00", "time zone")]
)
def test_what_is_neither_is_refused_with_what_to_write(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_deadline(text)
