"""`nightmill worker --gpus`: gives each GPU one worker process and starts it again when it dies. Imports no torch.

A child sees its GPU alone (CUDA_VISIBLE_DEVICES is set before torch is imported) and holds the lock of its device
together with the launcher, so that a device is never used twice, not even while a child outlives a killed launcher.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.children import end, spawn
from jobs.devices import Device, DeviceError, DeviceLister, DeviceLock, Nvml, lock_folder, select
from jobs.settings import Settings

log = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 60.0
HEALTHY_SECONDS = 60.0  # a child that lived this long had a good start
POLL_SECONDS = 0.1


def worker_command(device_name: str, model: str | None) -> list[str]:
    """How a worker process is started."""
    command = [sys.executable, "-m", "jobs.worker", "--name", device_name]
    return command if model is None else [*command, "--model", model]


@dataclass(slots=True)
class Child:
    """One device and its worker process."""

    device: Device
    lock: DeviceLock
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0  # in a row
    start_at: float = field(default=0.0)  # not before, on the monotonic clock


class Launcher:
    """Owns the children of this machine's chosen devices."""

    def __init__(
        self,
        devices: Sequence[Device],
        command: Callable[[Device], Sequence[str]],
        *,
        environment: Mapping[str, str],
        locks: Path,
        backoff_seconds: float,
        stop_seconds: float,
    ) -> None:
        """Takes every device's lock, or none. Raises DeviceError."""
        self._command = command
        self._environment = dict(environment)
        self._backoff = backoff_seconds
        self._stop_seconds = stop_seconds
        self.children: list[Child] = []
        try:
            for device in devices:
                self.children.append(Child(device, DeviceLock(device, locks)))
        except DeviceError:
            self._release()
            raise

    def run(self, stop: threading.Event) -> None:
        """Keep every device busy until `stop` is set, then end all children in order."""
        try:
            while not stop.wait(POLL_SECONDS):
                for child in self.children:
                    self._tend(child, time.monotonic())
        finally:
            self._stop_all()

    def _tend(self, child: Child, now: float) -> None:
        if child.process is None:
            if now >= child.start_at:
                self._start(child, now)
            return
        code = child.process.poll()
        if code is None:
            return
        lived = now - child.started_at
        child.failures = 0 if code == 0 or lived > HEALTHY_SECONDS else child.failures + 1
        child.start_at = now + min(self._backoff * 2.0 ** max(child.failures - 1, 0), MAX_BACKOFF_SECONDS)
        log.warning(
            "worker ended gpu=%d code=%d lived=%.1f failures=%d", child.device.index, code, lived, child.failures
        )
        child.process = None

    def _start(self, child: Child, now: float) -> None:
        environment = self._environment | {
            "CUDA_VISIBLE_DEVICES": child.device.uuid,
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "NIGHTMILL_DEVICE": "cuda",
        }
        child.process = spawn(self._command(child.device), env=environment, keep_fds=(child.lock.fd,))
        child.started_at = now
        log.info("worker started gpu=%d uuid=%s pid=%d", child.device.index, child.device.uuid, child.process.pid)

    def _stop_all(self) -> None:
        running = [child.process for child in self.children if child.process is not None]
        for process in running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + self._stop_seconds
        for process in running:
            end(process, max(deadline - time.monotonic(), 0.1))
        self._release()

    def _release(self) -> None:
        for child in self.children:
            child.lock.release()
        self.children = []


def run_launcher(
    settings: Settings, *, gpus: str, model: str | None, lister: DeviceLister | None = None, locks: Path | None = None
) -> int:
    """Serve on the chosen GPUs until SIGTERM or Ctrl-C; the exit code. Raises DeviceError."""
    devices = select((lister or Nvml()).devices(), gpus)
    launcher = Launcher(
        devices,
        lambda device: worker_command(f"gpu{device.index}", model),
        environment=os.environ,
        locks=locks or lock_folder(),
        backoff_seconds=settings.restart_backoff_seconds,
        stop_seconds=2 * settings.stop_seconds,
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    launcher.run(stop)
    return 0
