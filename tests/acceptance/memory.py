"""The resident peak of every process of a running submit, by role, as the kernel counts it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil

POLL_SECONDS = 0.5


def role(process: psutil.Process) -> str:
    """What this process is for: broker, worker, or the program itself."""
    command = " ".join(process.cmdline())
    if "valkey" in process.name() or "redis" in process.name():
        return "broker"
    return "worker" if "jobs.worker" in command else "program"


def high_water_megabytes(process: psutil.Process) -> float:
    """VmHWM: never falls, so a late look still sees the peak."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0.0


def watch(popen: subprocess.Popen[str], timeout: float) -> dict[str, float]:
    """Wait for a process and its descendants to end; the highest peak of each role in MB."""
    peaks: dict[str, float] = {}
    deadline = time.monotonic() + timeout
    parent = psutil.Process(popen.pid)
    while popen.poll() is None:
        assert time.monotonic() < deadline, f"not done after {timeout} s; so far {peaks}"
        try:
            for process in [parent, *parent.children(recursive=True)]:
                name = role(process)
                peaks[name] = max(peaks.get(name, 0.0), high_water_megabytes(process))
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked
        time.sleep(POLL_SECONDS)
    return peaks
