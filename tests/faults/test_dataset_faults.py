"""A data set under real processes: killed anywhere while it is settled, and read while it moves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage.dataset.current import read_current
from storage.dataset.names import REMOVED
from storage.dataset.store import DatasetStore
from tests.faults.settling import ROWS, settle, switch
from tests.unit.storage.dataset.samples import publish_night

pytestmark = pytest.mark.integration
MONDAY = "2026-11-23"
POINTS = (
    *("settle.before_verdict", "settle.after_verdict", "settle.before_current", "settle.after_current"),
    *("settle.after_card", "settle.after_move", "settle.after_retention"),
)
ROOT = Path(__file__).parents[2]


def start(*arguments: str | Path, **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.settling", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **settings},
        text=True,
        stdout=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    return output


def two_runs(dataset: Path) -> None:
    """A label whose first run is current, and whose second waits to be settled."""
    publish_night(dataset, MONDAY, "1", ROWS[MONDAY])
    settle(dataset, MONDAY, "1")
    publish_night(dataset, MONDAY, "2", ROWS[MONDAY])


def content(dataset: Path) -> dict[str, Any]:
    """Everything of a data set but the moments, and how often it was changed."""
    current = json.loads((dataset / "current.json").read_bytes())
    runs = {label: {**run, "since": None} for label, run in current["labels"].items()}
    files = sorted(str(path.relative_to(dataset)) for path in dataset.rglob("*") if path.is_file())
    return {"runs": runs, "replaced": [run["run"] for run in current["replaced"]], "files": files}


def test_a_process_killed_at_any_step_of_settling_is_made_good_by_settling_again(tmp_path: Path) -> None:
    two_runs(tmp_path / "unhurt")
    settle(tmp_path / "unhurt", MONDAY, "2")
    wanted = content(tmp_path / "unhurt")
    for point in POINTS:
        two_runs(tmp_path / point)

    victims = {
        point: start("settle", tmp_path / point, MONDAY, "2", NIGHTMILL_FAILPOINTS=f"{point}:kill") for point in POINTS
    }
    killed = {point: victim.communicate(timeout=120) and victim.returncode for point, victim in victims.items()}

    assert killed == dict.fromkeys(POINTS, -signal.SIGKILL)
    for point in POINTS:
        (run,) = read_current(tmp_path / point).runs
        assert run.run in ("1", "2"), "a reader found no run, or another one"
        assert settle(tmp_path / point, MONDAY, "2").published
        assert content(tmp_path / point) == wanted, point
        assert not (tmp_path / point / REMOVED).exists()
        DatasetStore(tmp_path / point).check_integrity()


def test_a_reader_never_meets_a_mixture_or_an_error_while_runs_are_switched_and_refused(tmp_path: Path) -> None:
    dataset = tmp_path / "stories"
    switch(dataset, "first", 1)
    reader = start("read", dataset)
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"

    writers = [start("switch", dataset, name, "8") for name in ("left", "right")]
    for writer in writers:
        finish(writer)
    (tmp_path / "stop").touch()

    seen = json.loads(finish(reader))
    assert seen["problems"] == []
    assert seen["forms"] > 1, "the reader was too slow to see a switch"
    assert {run.label for run in read_current(dataset).runs} == set(ROWS)
    assert not any(run.run.endswith(("-2", "-5")) for run in read_current(dataset).runs), "a refused run is current"
    DatasetStore(dataset).check_integrity()


def test_two_processes_that_settle_the_same_run_agree(tmp_path: Path) -> None:
    dataset = tmp_path / "stories"
    two_runs(dataset)

    pair = [start("settle", dataset, MONDAY, "2") for _ in range(2)]
    reasons = {finish(process) for process in pair}

    assert reasons == {"all gates passed\n"}
    assert [run.run for run in read_current(dataset).runs] == ["2"]
    assert read_current(dataset).revision == 3, "taken twice: 1, then 2, then the first run forgotten"
