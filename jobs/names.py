"""A worker's name, e.g. cpu0@host: its device and its host, and a mark where two machines have one host name.

Containers of one host name are such machines, and so are the users of one host: each has locks of its own, which say
nothing about the other's workers.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.devices import Device, DeviceError, DeviceLock
from storage.durable import create_exclusive
from storage.records import WorkerRecord


@dataclass(frozen=True, slots=True)
class Name:
    """`inherits`: an earlier process of this name ran on this machine, so that it is dead and what it held is ours."""

    node: str
    boot_id: str
    inherits: bool


def worker_name(device: str, mark: str, known: Sequence[WorkerRecord], stale_seconds: float) -> Name:
    """The name of a new worker of this device, given who was ever heard of. `mark` is this machine's."""
    host = socket.gethostname()
    node = f"{device}@{host}"
    earlier = next((record for record in known if record.id == node), None)
    ours = earlier is not None and _mark_of(earlier) == mark
    if earlier is not None and not ours and earlier.state != "gone" and earlier.heartbeat_age < stale_seconds:
        node = f"{device}-{mark}@{host}"
        ours = any(record.id == node for record in known)
    return Name(node, f"{mark}.{uuid.uuid4().hex}", ours)


def machine_mark(folder: Path) -> str:
    """What all processes with this folder of locks share and no others have."""
    path = folder / "machine"
    try:
        create_exclusive(path, uuid.uuid4().hex[:8].encode())
        return path.read_text()
    except OSError as error:
        raise DeviceError(f"the folder of locks {folder} cannot be used: {error}") from error


def cpu_place(folder: Path) -> DeviceLock:
    """The first free name cpu0, cpu1, ... of this machine; its lock is held while the process lives."""
    for index in range(10_000):
        try:
            return DeviceLock(Device(index, f"cpu{index}", "cpu"), folder)
        except DeviceError:
            continue
    raise DeviceError("this machine runs 10,000 workers already")


def _mark_of(record: WorkerRecord) -> str:
    return record.boot_id.partition(".")[0]
