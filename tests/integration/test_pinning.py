"""One worker per GPU on a machine with four of them, as the driver's stand-in says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from jobs.devices import Device, DeviceError, DeviceLock, select
from jobs.launcher import Launcher, run_launcher
from jobs.restarts import EXIT_DRAINED
from jobs.settings import Settings
from tests.faults.harness import alive, wait_for
from tests.integration.program import ROOT

pytestmark = pytest.mark.integration

GPUS = tuple(Device(index, f"GPU-{index}{index}{index}", "Fake H100") for index in range(4))

# What a worker does first: it tells which device it got and what it has imported by then.
CHILD = """
import json, os, pathlib, sys, time
if len(sys.argv) > 2:
    import jobs.worker
seen = {"device": os.environ["CUDA_VISIBLE_DEVICES"], "torch": "torch" in sys.modules, "pid": os.getpid()}
path = pathlib.Path(sys.argv[1], f"{os.getpid()}.tmp")
path.write_text(json.dumps(seen))
path.rename(path.with_suffix(".json"))
time.sleep(600)
"""


class FakeDriver:
    def devices(self) -> tuple[Device, ...]:
        return GPUS


class Running:
    """A launcher in a thread, whose children report to a folder."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.reports = folder / "reports"
        self.reports.mkdir()
        self.launcher = Launcher(
            GPUS,
            lambda device: [sys.executable, "-c", CHILD, str(self.reports), *arguments],
            environment=os.environ | {"PYTHONPATH": str(ROOT)},
            locks=folder / "locks",
            backoff_seconds=0.05,
            max_restarts=5,
            stop_seconds=5.0,
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.launcher.run, args=(self._stop,))
        self._thread.start()

    def seen(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in self.reports.glob("*.json")]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    started = Running(tmp_path)
    yield started
    started.stop()


def test_four_children_get_four_devices_before_torch_is_imported(tmp_path: Path) -> None:
    running = Running(tmp_path, "import jobs.worker")
    try:
        wait_for(lambda: len(running.seen()) == 4, "four children report")
    finally:
        running.stop()

    assert {child["device"] for child in running.seen()} == {device.uuid for device in GPUS}
    assert not any(child["torch"] for child in running.seen())


def test_a_device_that_is_in_use_is_refused_and_so_is_one_that_is_not_there(running: Running) -> None:
    with pytest.raises(DeviceError, match=r"GPU 2 \(GPU-222\) already has a worker"):
        run_launcher(Settings(), gpus="2", model=None, lister=FakeDriver(), locks=running.folder / "locks")
    with pytest.raises(DeviceError, match="names '4', but this machine has"):
        run_launcher(Settings(), gpus="4", model=None, lister=FakeDriver(), locks=running.folder / "locks")


def test_the_device_of_a_killed_child_is_taken_again(running: Running) -> None:
    wait_for(lambda: len(running.seen()) == 4, "four children report")
    victim = running.seen()[0]

    os.kill(victim["pid"], signal.SIGKILL)

    wait_for(lambda: len(running.seen()) == 5, "a fifth child reports")
    devices = [child["device"] for child in running.seen()]
    assert devices.count(victim["device"]) == 2


def test_stopping_the_launcher_ends_the_children_and_frees_the_devices(running: Running) -> None:
    wait_for(lambda: len(running.seen()) == 4, "four children report")
    pids = [child["pid"] for child in running.seen()]

    running.stop()

    assert not any(alive(pid) for pid in pids)
    for device in GPUS:
        DeviceLock(device, running.folder / "locks").release()


def launch(devices: Sequence[Device], command: str, folder: Path) -> int:
    """Run the command for each device, at most three times; the launcher's exit code."""
    launcher = Launcher(
        devices,
        lambda device: ["/bin/sh", "-c", command],
        environment=os.environ,
        locks=folder / "locks",
        backoff_seconds=0.01,
        max_restarts=2,
        stop_seconds=5.0,
    )
    return launcher.run(threading.Event())


def test_workers_that_cannot_serve_are_started_again_a_few_times_and_then_the_launcher_ends_as_they_did(
    tmp_path: Path,
) -> None:
    starts = tmp_path / "starts"

    code = launch(GPUS[:1], f"echo start >> {starts}; exit 78", tmp_path)

    assert code == 78
    assert starts.read_text().split() == ["start"] * 3
    DeviceLock(GPUS[0], tmp_path / "locks").release()


def test_workers_that_were_drained_are_not_started_again_and_the_launcher_leaves_when_all_were(tmp_path: Path) -> None:
    starts = tmp_path / "starts"

    code = launch(GPUS[:2], f"echo start >> {starts}; exit {EXIT_DRAINED}", tmp_path)

    assert code == 0
    assert starts.read_text().split() == ["start"] * 2


def test_a_device_stays_locked_while_the_child_of_a_killed_launcher_lives(tmp_path: Path) -> None:
    holder = DeviceLock(GPUS[0], tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(holder.fd,))
    holder.release()

    with pytest.raises(DeviceError):
        DeviceLock(GPUS[0], tmp_path)
    child.communicate(b"\n")

    DeviceLock(GPUS[0], tmp_path).release()


def test_devices_are_chosen_by_all_by_index_and_by_uuid() -> None:
    assert select(GPUS, "all") == GPUS
    assert select(GPUS, "0,3") == (GPUS[0], GPUS[3])
    assert select(GPUS, "GPU-111, 1") == (GPUS[1],)
    with pytest.raises(DeviceError, match="has no GPU"):
        select((), "all")
