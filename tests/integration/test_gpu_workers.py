"""`nightmill worker --gpus` with its own children, on a machine whose driver says that it has four GPUs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.devices import Device, DeviceLock
from tests.fakes import make_fake_model
from tests.faults.harness import wait_for
from tests.integration.program import ROOT, Program
from tests.integration.refusals import assert_refused

pytestmark = pytest.mark.integration

UUIDS = tuple(f"GPU-{index}{index}{index}" for index in range(4))

# The driver's bindings, as far as jobs.devices uses them, and the engine that a child would load its model into.
DRIVER = f"""
class NVMLError(Exception):
    pass

def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return {len(UUIDS)}
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUUID(index): return {UUIDS}[index]
def nvmlDeviceGetName(index): return "Fake H100"
"""
ENGINE = """
import json, os, sys
from pathlib import Path

from engine.errors import ModelRefused

def report_and_refuse(model_dir, settings):
    seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")}
    seen |= {"device": settings.device, "dtype": settings.dtype, "torch": "torch" in sys.modules, "args": sys.argv[1:]}
    with Path(os.environ["REPORTS"]).open("a") as reports:
        reports.write(json.dumps(seen) + "\\n")
    raise ModelRefused("this machine only looks as if it had GPUs")
"""


@pytest.fixture
def machine(program: Program) -> Program:
    """Four GPUs, locks of its own, a database, and no broker: no child gets as far as asking for one."""
    fakes = program.folder / "fakes"
    fakes.mkdir()
    (fakes / "pynvml.py").write_text(DRIVER)
    (fakes / "reporting.py").write_text(ENGINE)
    (program.folder / "tmp").mkdir()
    made = replace(
        program,
        settings={
            "PYTHONPATH": f"{fakes}:{ROOT}",
            "TMPDIR": str(program.folder / "tmp"),
            "REPORTS": str(program.folder / "reports"),
            "NIGHTMILL_BROKER_URL": "redis://127.0.0.1:1/0",
            "NIGHTMILL_DATABASE_URL": f"sqlite:///{program.folder}/jobs.db",
            "NIGHTMILL_ENGINE_FACTORY": "reporting:report_and_refuse",
            "NIGHTMILL_MAX_CONSECUTIVE_RESTARTS": "0",
        },
    )
    assert made.nightmill("db", "upgrade").returncode == 0
    return made


def reports(machine: Program) -> list[dict[str, object]]:
    return [json.loads(line) for line in (machine.folder / "reports").read_text().splitlines()]


def serve(machine: Program, *arguments: str) -> Sequence[str]:
    model = make_fake_model(machine.folder / "model")
    return ["worker", "--model", str(model), *arguments]


def test_each_child_gets_one_gpu_of_its_own_before_torch_is_imported_and_ends_as_documented(machine: Program) -> None:
    done = machine.nightmill(*serve(machine, "--gpus", "all", "--dtype", "bfloat16"))

    children = reports(machine)
    assert done.returncode == 78, done.stderr
    assert sorted(str(child["CUDA_VISIBLE_DEVICES"]) for child in children) == list(UUIDS)
    assert not any(child["torch"] for child in children)
    assert {(child["device"], child["dtype"], child["CUDA_DEVICE_ORDER"]) for child in children} == {
        ("cuda", "bfloat16", "PCI_BUS_ID")
    }
    names = {str(child["args"][1]): child["CUDA_VISIBLE_DEVICES"] for child in children}  # type: ignore[index]
    assert names == {f"gpu{index}": uuid for index, uuid in enumerate(UUIDS)}
    assert done.stderr.count("nightmill worker: this machine only looks as if it had GPUs") == len(UUIDS)
    assert "Traceback" not in done.stderr


def test_children_that_find_no_database_say_so_and_are_started_again_until_it_is_back(machine: Program) -> None:
    url = "postgresql://me:secret@127.0.0.1:1/db"
    away = replace(
        machine,
        settings={**machine.settings, "NIGHTMILL_DATABASE_URL": url, "NIGHTMILL_RESTART_BACKOFF_SECONDS": "0.1"},
    )
    log = machine.folder / "launcher.log"

    with log.open("w") as stream:
        launcher = away.start("-m", "nightmill", *serve(machine, "--gpus", "GPU-333"), stderr=stream)
        wait_for(lambda: log.read_text().count("code=8") >= 3, "three ends")
        launcher.terminate()

    assert launcher.wait(60) == 0
    said = log.read_text()
    assert "nightmill worker: the database" in said
    assert "Traceback" not in said
    assert "secret" not in said


def test_a_fifth_gpu_and_one_that_has_a_worker_are_refused_before_any_child_starts(machine: Program) -> None:
    assert_refused(machine.nightmill(*serve(machine, "--gpus", "0,4")), 2, ["names '4', but this machine has 0"])

    held = DeviceLock(Device(2, UUIDS[2], "Fake H100"), lock_folder_of(machine))
    try:
        refused = machine.nightmill(*serve(machine, "--gpus", "all"))
    finally:
        held.release()

    assert_refused(refused, 2, [f"GPU 2 ({UUIDS[2]}) already has a worker"])
    assert not (machine.folder / "reports").exists()


def lock_folder_of(machine: Program) -> Path:
    """As jobs.devices.lock_folder makes it below the machine's TMPDIR."""
    return machine.folder / "tmp" / f"nightmill-devices-{os.getuid()}"
