"""What a run's job depends on its date for: input paths and the seed. Pure."""

from __future__ import annotations

import re
from datetime import datetime

from jobs.options import derive_seed
from jobs.schedules.cron import Slot
from storage.schedule_records import Run

FIELD = re.compile(r"\{(\w*)\}")
FIELDS = ("ds", "ds_nodash", "year", "month", "day", "hour", "minute", "label")


def check_template(text: str) -> None:
    """Raises ValueError for a field that nobody fills in."""
    for name in FIELD.findall(text):
        if name not in FIELDS:
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise ValueError(f"input is {text!r}, and nothing is known of {{{name}}}; there are {known}")


def is_dated(text: str) -> bool:
    """Does every slot get a path of its own?"""
    return FIELD.search(text) is not None


def fill(text: str, slot: Slot) -> str:
    """`prompts/{ds}/*.parquet` for 2026-11-27 is `prompts/2026-11-27/*.parquet`."""
    values = {
        "ds": f"{slot.at:%Y-%m-%d}",
        "ds_nodash": f"{slot.at:%Y%m%d}",
        "year": f"{slot.at:%Y}",
        "month": f"{slot.at:%m}",
        "day": f"{slot.at:%d}",
        "hour": f"{slot.at:%H}",
        "minute": f"{slot.at:%M}",
        "label": slot.label,
    }
    return FIELD.sub(lambda match: values[match[1]], text)


def slot_of(run: Run) -> Slot:
    """The slot that a run was made for, whatever its schedule says by now."""
    return Slot(datetime.fromisoformat(run.slot), run.logical_time, run.label)


def seed_of(schedule: str, seed: int | None, label: str) -> int:
    """Another one for every label, the same for every attempt at it."""
    return derive_seed("run", schedule if seed is None else seed, label)
