"""`nightmill up`: one command from nothing to runs that become current, and nothing left of it afterwards."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import termios
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.dataset.current import read_current
from storage.errors import NoSuchDataset
from tests.fakes import make_fake_model
from tests.faults.harness import alive, wait_for
from tests.integration.program import Program

pytestmark = pytest.mark.integration

PATIENCE = 150.0  # seconds; starting processes is slow on a busy machine
Start = Callable[..., "Up"]


class Up:
    """`nightmill up` in the background, in its own session like a terminal's."""

    def __init__(self, program: Program, *options: str) -> None:
        self.log = program.folder / "up.log"
        self._terminal, ours = pty.openpty()
        command = ("-m", "nightmill", "up", *options)
        with self.log.open("wb") as log, os.fdopen(ours) as terminal:
            self.process = program.start(
                *command, stdin=terminal, stdout=log, stderr=log, start_new_session=True, preexec_fn=_take_terminal
            )

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: signal.Signals) -> int:
        """The exit code."""
        os.killpg(self.process.pid, number)
        return self.process.wait(60)

    def hang_up(self) -> int:
        """Close its terminal; the exit code."""
        os.close(self._terminal)
        self._terminal = -1
        return self.process.wait(60)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self._terminal >= 0:
            os.close(self._terminal)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def flower(self) -> str:
        """Its address, once it is there."""
        wait_for(lambda: "Flower shows the shards at" in self.text, "Flower is there", PATIENCE)
        found = re.search(r"http://127\.0\.0\.1:\d+", self.text)
        assert found is not None
        return found[0]


def _take_terminal() -> None:
    """In the new process: standard input is the terminal that it is started from. Its end is to be heard of, also where
    these tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def office(tmp_path: Path) -> Program:
    """A folder with prompts, a model, and everything that waits scaled down."""
    program = Program(tmp_path, {"NIGHTMILL_SCHEDULE_TICK_SECONDS": "0.3", "OMP_NUM_THREADS": "1"})
    pq.write_table(pa.table({"prompt": [f"prompt {i}" for i in range(6)]}), tmp_path / "in.parquet")
    make_fake_model(tmp_path / "model")
    return program


@pytest.fixture
def start(office: Program) -> Iterator[Start]:
    started: list[Up] = []

    def start_one(*options: str, program: Program = office) -> Up:
        started.append(Up(program, *(options or ("--port", "0"))))
        return started[-1]

    yield start_one
    for up in started:
        up.close()


def add(program: Program, cron: str) -> subprocess.CompletedProcess[str]:
    files = ("--input", "in.parquet", "--dataset", "data", "--model", "model", "--set", "job.max_tokens=8")
    return program.nightmill("schedule", "add", "often", "--cron", cron, *files, "--set", "max_active=9")


def labels(program: Program) -> list[str]:
    try:
        return [run.label for run in read_current(program.folder / "data").runs]
    except NoSuchDataset:
        return []


def tasks_shown(flower: str) -> list[dict[str, Any]]:
    """The rows of Flower's page of tasks, asked for as its script asks."""
    query = {"draw": 1, "start": 0, "length": 500, "search[value]": "", "order[0][column]": 0, "order[0][dir]": "asc"}
    url = f"{flower}/tasks/datatable?{urllib.parse.urlencode(query | {'columns[0][data]': 'name'})}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        rows: list[dict[str, Any]] = json.loads(answer.read())["data"]
    return rows


def gone(family: list[psutil.Process]) -> None:
    """Fails unless all of it ends."""
    wait_for(lambda: not any(alive(process.pid) for process in family), "nothing is left running", 30.0)


def test_up_makes_runs_current_shows_them_in_flower_and_outlives_a_kill(office: Program, start: Start) -> None:
    up = start()
    wait_for(lambda: "beat started" in up.text, "everything is started", PATIENCE)

    assert add(office, "*/2 * * * * *").returncode == 0
    wait_for(lambda: len(labels(office)) >= 3, "three labels are current", PATIENCE)
    second = office.nightmill("up", "--no-flower")
    tasks, family = tasks_shown(up.flower), up.family()
    up.process.kill()
    gone(family)
    seen = len(labels(office))
    again = start("--no-flower")
    wait_for(lambda: len(labels(office)) > seen, "nights go on", PATIENCE)
    family = again.family()
    code = again.stop(signal.SIGINT)

    assert (second.returncode, "another `nightmill up`" in second.stderr) == (8, True)
    assert code == 0, again.text
    assert not any(alive(process.pid) for process in family)
    assert {task["name"] for task in tasks} == {"run_shard"}  # and no ticks
    assert "Traceback" not in again.text
    listed = json.loads(office.nightmill("schedule", "show", "often", "--limit", "1000").stdout)
    ended = [run["label"] for run in listed["runs"] if run["state"] == "succeeded"]
    assert sorted(ended) == sorted(labels(office))
    folders = os.listdir(office.folder / "data" / "_runs")
    assert set(ended) <= set(folders) <= {run["label"] for run in listed["runs"] if run["run"]}


def test_the_end_of_its_terminal_stops_everything_in_order(office: Program, start: Start) -> None:
    up = start("--no-flower")
    wait_for(lambda: "beat started" in up.text, "everything is started", PATIENCE)

    family = up.family()
    code = up.hang_up()

    assert code == 0, up.text
    assert len(family) >= 2  # broker and beat
    assert not any(alive(process.pid) for process in family)
    assert not (office.folder / "home" / "owner.json").exists()


@pytest.mark.slow
def test_with_a_broker_and_a_database_of_its_own_up_brings_the_other_processes(
    office: Program, start: Start, broker: str
) -> None:
    url = f"sqlite:///{office.folder}/own.db"
    own = {"NIGHTMILL_BROKER_URL": broker, "NIGHTMILL_DATABASE_URL": url, "NIGHTMILL_REDIS_PREFIX": "up:"}
    own |= {"NIGHTMILL_LEASE_SECONDS": "3", "NIGHTMILL_HEARTBEAT_SECONDS": "0.5"}
    real = Program(office.folder, {**office.settings, **own})
    assert real.nightmill("db", "upgrade").returncode == 0
    added = add(real, "*/3 * * * * *")
    up = start("--no-flower", program=real)

    wait_for(lambda: len(labels(office)) >= 1, "a label is current", PATIENCE)
    family = up.family()
    killed = next(process for process in family if "reconciler" in process.cmdline())
    killed.kill()
    seen = len(labels(office))
    wait_for(lambda: len(labels(office)) > seen, "it is started again", PATIENCE)
    family += up.family()

    assert "no reconciler is live" in added.stderr
    assert up.stop(signal.SIGTERM) == 0, up.text
    assert not any(alive(process.pid) for process in family)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_minutes_of_up_make_ten_labels_current(office: Program, start: Start) -> None:
    up = start()
    wait_for(lambda: "beat started" in up.text, "everything is started", PATIENCE)
    began = time.time()

    assert add(office, "* * * * *").returncode == 0
    wait_for(lambda: len(labels(office)) >= 10, "ten labels are current", 720)
    seconds = time.time() - began
    tasks = tasks_shown(up.flower)
    family = up.family()

    assert up.stop(signal.SIGTERM) == 0, up.text
    assert 540 < seconds < 720
    assert len(tasks) >= 10
    assert not any(alive(process.pid) for process in family)
    runs = json.loads(office.nightmill("schedule", "show", "often").stdout)["runs"]
    assert [run["label"] for run in runs if run["state"] == "succeeded"][::-1] == labels(office)
