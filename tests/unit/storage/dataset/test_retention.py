"""Which run folders may go: by count or by age, but nothing that somebody may still need."""

from __future__ import annotations

import pytest

from storage.dataset.current import Current, Replaced
from storage.dataset.retention import Retention
from tests.unit.storage.dataset.samples import NOON, Night, days

MONDAY = "2026-11-23"


@pytest.mark.parametrize(
    ("rule", "gone"),
    [
        (Retention(keep_runs=None, keep_days=None, keep_failed=days(0), grace=days(0)), []),
        (Retention(keep_runs=2, keep_days=None, keep_failed=days(0), grace=days(0)), ["1"]),
        (Retention(keep_runs=None, keep_days=2.5, keep_failed=days(0), grace=days(0)), ["2", "1"]),
        (Retention(keep_runs=1, keep_days=5, keep_failed=days(0), grace=days(3.5)), ["1"]),
    ],
)
def test_folders_go_by_count_or_by_age(rule: Retention, gone: list[str]) -> None:
    left = [Replaced(label=MONDAY, run=str(6 - age), at=NOON - days(age - 1)) for age in (5, 4, 3)]
    verdicts = [Night(MONDAY, run, 1, "0").verdict(at=NOON - days(9)) for run in ("1", "2", "3")]

    removable = rule.removable(Current(4, (), tuple(left)), verdicts, NOON)

    assert [run for _, run in removable] == gone
