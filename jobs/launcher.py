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
from dataclasses import dataclass
from pathlib import Path

from jobs.children import end, import_path, spawn
from jobs.devices import Device, DeviceError, DeviceLister, DeviceLock, Nvml, lock_folder, select
from jobs.restarts import EXIT_DRAINED, EXIT_MODEL, Restarts
from jobs.settings import Settings
from jobs.signals import set_on_signals

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1


def worker_command(device_name: str, model: str | None, revision: str | None) -> list[str]:
    """How a worker process is started. -P: a folder `jobs` where the launcher was started is none of our business."""
    command = [sys.executable, "-P", "-m", "jobs.worker", "--name", device_name, "--supervised"]
    command += [] if model is None else ["--model", model]
    return command + ([] if revision is None else ["--model-revision", revision])


@dataclass(slots=True)
class Child:
    """One device and its worker process."""

    device: Device
    lock: DeviceLock
    restarts: Restarts
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    code: int = 0  # of the last end

    @property
    def given_up(self) -> bool:
        """It was refused its model too often. Whatever else ends a worker, an outage say, may pass by morning."""
        return self.code == EXIT_MODEL and self.restarts.spent

    @property
    def has_left(self) -> bool:
        """It is not started again: given up, or drained by somebody who wants its GPU."""
        return self.given_up or self.code == EXIT_DRAINED


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
        max_restarts: int,
        stop_seconds: float,
    ) -> None:
        """Takes every device's lock, or none. Raises DeviceError."""
        self._command = command
        self._environment = dict(environment)
        self._stop_seconds = stop_seconds
        self.children: list[Child] = []
        try:
            for device in devices:
                restarts = Restarts(backoff_seconds, max_restarts)
                self.children.append(Child(device, DeviceLock(device, locks), restarts))
        except DeviceError:
            self._release()
            raise

    def run(self, stop: threading.Event) -> int:
        """Keep every device busy until `stop` is set, then end all children in order; the exit code.

        Ends by itself when every worker was drained or, with a worker's code, cannot serve its model.
        """
        try:
            while not stop.wait(POLL_SECONDS):
                for child in self.children:
                    self._tend(child, time.monotonic())
                if all(child.has_left for child in self.children):
                    return EXIT_MODEL if any(child.given_up for child in self.children) else 0
            return 0
        finally:
            self._stop_all()

    def _tend(self, child: Child, now: float) -> None:
        if child.process is None:
            if now >= child.restarts.start_at and not child.has_left:
                self._start(child, now)
            return
        code = child.process.poll()
        if code is None:
            return
        lived = now - child.started_at
        child.restarts.ended(code, lived, now)
        child.process = None
        child.code = code if code >= 0 else 128 - code  # of a signal, as a shell has it
        index, failures = child.device.index, child.restarts.failures
        log.warning("worker ended gpu=%d code=%d lived=%.1f failures=%d", index, code, lived, failures)
        if child.given_up:
            log.error(
                "the worker of GPU %d was refused its model %d times in a row and is not started again;"
                " its last words say why, and `nightmill worker --gpus %d` starts it",
                *(index, failures, index),
            )

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
    settings: Settings,
    *,
    gpus: str,
    model: str | None,
    revision: str | None = None,
    lister: DeviceLister | None = None,
    locks: Path | None = None,
) -> int:
    """Serve on the chosen GPUs until SIGTERM or Ctrl-C; the exit code. Raises DeviceError."""
    devices = select((lister or Nvml()).devices(), gpus)
    launcher = Launcher(
        devices,
        lambda device: worker_command(f"gpu{device.index}", model, revision),
        environment=os.environ | {"NIGHTMILL_DTYPE": settings.dtype, "PYTHONPATH": import_path()},
        locks=locks or lock_folder(),
        backoff_seconds=settings.restart_backoff_seconds,
        max_restarts=settings.max_consecutive_restarts,
        stop_seconds=2 * settings.stop_seconds,
    )
    stop = threading.Event()
    set_on_signals(stop, signal.SIGTERM, signal.SIGINT)
    return launcher.run(stop)
