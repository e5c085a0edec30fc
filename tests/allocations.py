"""What torch allocates, also within its operations."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def memory_changes(call: Callable[[], object], trace: Path) -> list[int]:
    """Every allocation during the call in bytes, in order; what is given back counts below zero."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    profiler.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(events, key=lambda event: float(event["ts"]))]


def peak_bytes(call: Callable[[], object], trace: Path) -> int:
    """The most that is held at a time of what the call allocates."""
    return max(accumulate(memory_changes(call, trace)), default=0)
