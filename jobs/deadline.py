"""`--deadline`: a duration from the moment of submission, or a moment."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

UNIT_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
DURATION = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")


@dataclass(frozen=True, slots=True)
class Deadline:
    """Seconds from the submission on the database's clock, or seconds since 1970."""

    seconds: float | None = None
    at: float | None = None


def parse_deadline(text: str) -> Deadline:
    """`24h`, `1h30m`, `2026-12-01T06:00Z`. Raises ValueError."""
    if DURATION.fullmatch(text):
        parts = re.findall(r"([\d.]+)([dhms])", text)
        return Deadline(seconds=sum(float(number) * UNIT_SECONDS[unit] for number, unit in parts))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"--deadline is {text!r}; write a duration like 90m, 24h or 1d12h, or a time like 2026-12-01T06:00Z"
        ) from None
    if moment.tzinfo is None:
        raise ValueError(f"--deadline {text} has no time zone; add Z for UTC or an offset like +01:00")
    return Deadline(at=moment.timestamp())
