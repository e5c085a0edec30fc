"""Which GPUs this machine has, which of them were asked for, and the lock that gives each to one worker."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class DeviceError(Exception):
    """A device cannot be used; the message names it and says what to do."""


@dataclass(frozen=True, slots=True)
class Device:
    index: int
    uuid: str  # GPU-8a5c..., as CUDA_VISIBLE_DEVICES takes it
    name: str


class DeviceLister(Protocol):
    """The seam to the driver."""

    def devices(self) -> tuple[Device, ...]:
        """In index order. Raises DeviceError."""


class Nvml:
    """Devices as the NVIDIA driver lists them; needs no torch and no CUDA context."""

    def devices(self) -> tuple[Device, ...]:
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise DeviceError(
                f"no NVIDIA driver answers ({error}); `nightmill worker` without --gpus runs on the CPU"
            ) from error
        try:
            return tuple(self._device(index) for index in range(pynvml.nvmlDeviceGetCount()))
        finally:
            pynvml.nvmlShutdown()

    @staticmethod
    def _device(index: int) -> Device:
        import pynvml

        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        return Device(index, str(pynvml.nvmlDeviceGetUUID(handle)), str(pynvml.nvmlDeviceGetName(handle)))


def check_pinned(device: str, environment: Mapping[str, str], modules: Container[str]) -> None:
    """Raise DeviceError unless a process that is to serve on a GPU sees that one alone, and torch is still to come."""
    if not device.startswith("cuda"):
        return
    seen = environment.get("CUDA_VISIBLE_DEVICES", "")
    if not seen.strip() or "," in seen:
        raise DeviceError(
            f"CUDA_VISIBLE_DEVICES is {seen!r}, but a worker serves on exactly one GPU: start it with"
            " `nightmill worker --gpus 0`, or set the variable to the index or UUID of one GPU"
        )
    if "torch" in modules:
        raise DeviceError(
            "torch was imported before the worker chose its GPU, so that the choice may be ignored:"
            " start the worker as a process of its own, with `nightmill worker`"
        )


def select(devices: Sequence[Device], wanted: str) -> tuple[Device, ...]:
    """`all`, or indices and UUIDs with commas; each device once. Raises DeviceError for one that is not there."""
    if not devices:
        raise DeviceError("this machine has no GPU; `nightmill worker` without --gpus runs on the CPU")
    if wanted.strip() == "all":
        return tuple(devices)
    chosen: dict[str, Device] = {}
    for word in (part.strip() for part in wanted.split(",")):
        found = [device for device in devices if word in (str(device.index), device.uuid)]
        if not found:
            known = ", ".join(f"{device.index} ({device.uuid})" for device in devices)
            raise DeviceError(f"--gpus names {word!r}, but this machine has {known}")
        chosen[found[0].uuid] = found[0]
    return tuple(chosen.values())


class DeviceLock:
    """Held by every process that has the descriptor open: launcher and child. Free once all of them are dead."""

    def __init__(self, device: Device, folder: Path) -> None:
        """Raises DeviceError when another worker has the device."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.device = device
        self.path = folder / f"{device.uuid}.lock"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self.fd)
            raise DeviceError(
                f"GPU {device.index} ({device.uuid}) already has a worker; stop that one first (lock {self.path})"
            ) from error

    def release(self) -> None:
        os.close(self.fd)


def lock_folder() -> Path:
    """One per user and machine, whatever the state directory: a device knows only one worker.

    Its path can be foretold, so another user may have made it. Raises DeviceError unless it is ours alone.
    """
    folder = Path(tempfile.gettempdir()) / f"nightmill-devices-{os.getuid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise DeviceError(f"the folder of locks {folder} cannot be made ({error.strerror}); {_ELSEWHERE}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise DeviceError(
            f"the folder of locks {folder} is no directory of this user; have it removed, or {_ELSEWHERE}"
        )
    if found.st_mode & 0o077:
        raise DeviceError(f"the folder of locks {folder} is open to other users; run `chmod 700 {folder}`")
    return folder


_ELSEWHERE = "set TMPDIR to a directory of yours, the same for all workers of this machine"
