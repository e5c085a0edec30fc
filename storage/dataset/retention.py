"""Which run folders nobody needs any more. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from storage.dataset.current import Current
from storage.dataset.verdicts import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Of the folders that are not current, at most `keep_runs` stay, and none longer than `keep_days`; None: no bound.

    But what was current within `grace` stays, and what was refused stays for `keep_failed`.
    """

    keep_runs: int | None
    keep_days: float | None
    keep_failed: timedelta
    grace: timedelta

    def removable(self, current: Current, found: Iterable[Verdict], now: datetime) -> list[tuple[str, str]]:
        """(label, run) of what may go. A run that is current, has no verdict, or was accepted and has not come in yet
        is never among them."""
        kept = {(run.label, run.run) for run in current.runs}
        left_at = {(run.label, run.run): run.at for run in current.replaced}
        others = [verdict for verdict in found if (verdict.label, verdict.run) not in kept]
        others = [each for each in others if (each.label, each.run) in left_at or not _comes(each, current)]
        ages = [(now - left_at.get((each.label, each.run), each.at), each) for each in others]
        ages.sort(key=lambda pair: (pair[0], pair[1].label, pair[1].run))
        return [
            (verdict.label, verdict.run)
            for place, (age, verdict) in enumerate(ages)
            if self._is_beyond(place, age) and age > self.grace and (verdict.accepted or age > self.keep_failed)
        ]

    def _is_beyond(self, place: int, age: timedelta) -> bool:
        by_count = self.keep_runs is not None and place >= self.keep_runs
        return by_count or (self.keep_days is not None and age > timedelta(days=self.keep_days))


def _comes(verdict: Verdict, current: Current) -> bool:
    """Was it accepted, and has a crash kept it from coming in?"""
    return verdict.accepted and not current.is_past(verdict.label, verdict.order, verdict.generation)
