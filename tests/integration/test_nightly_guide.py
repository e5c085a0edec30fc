"""Every command of the guide to schedules runs, in its order, and what it says of options and states is so."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.schedules.spec import KEYS, parse_schedule
from jobs.settings import Settings
from storage.dataset.current import read_current
from storage.dataset.reading import open_dataset
from storage.states import RunState
from tests.fakes import make_fake_model
from tests.faults.harness import wait_for
from tests.integration.program import ROOT, Program

pytestmark = pytest.mark.integration

GUIDE = (ROOT / "docs/nightly.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]
[FILE] = [code for language, code in BLOCKS if language == "toml"]


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(program: Program, call: Command) -> Command:
    """A line of the guide; one that waits starts all that is needed, so it gets a process of its own."""

    def run_line(line: str) -> subprocess.CompletedProcess[str]:
        command = program.nightmill if "--wait" in line else call
        done = command(*shlex.split(line)[1:])
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done

    return run_line


@pytest.mark.timeout(600)
def test_the_commands_take_a_prompt_file_to_a_nightly_data_set(program: Program, run: Command) -> None:
    make_fake_model(program.folder / "model")
    [script] = [code for language, code in BLOCKS if language == "python"]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=program.folder)
    (program.folder / "schedules.toml").write_text(FILE)
    lines = iter(COMMANDS)

    add, first, show, results = (run(next(lines)) for _ in range(4))
    assert "it fires next for" in add.stderr
    label = json.loads(first.stdout)["label"]
    assert json.loads(show.stdout)["runs"][0]["state"] == "succeeded"
    assert [json.loads(line)["dt"] for line in results.stdout.splitlines()] == [label] * 2

    dry, applied = run(next(lines)), run(next(lines))
    assert "+ terms.min_success_rate: 0.9" in dry.stdout
    assert applied.stdout == dry.stdout

    planned, filled, again = (run(next(lines)) for _ in range(3))
    assert [json.loads(line)["label"] for line in planned.stdout.splitlines()] == ["2026-11-01", "2026-11-02"]
    assert [json.loads(line)["state"] for line in filled.stdout.splitlines()] == ["succeeded"] * 2
    assert "0 of 2 dates" in again.stderr
    current = read_current(program.folder / "stories")
    assert {run.label for run in current.runs} == {"2026-11-01", "2026-11-02", label}
    assert open_dataset(program.folder / "stories").count_rows() == 9

    _with_up(program, next(lines), run, list(lines))


def _with_up(program: Program, line: str, run: Command, lines: list[str]) -> None:
    """Run the last commands while everything runs that a night needs; Flower is not looked at here."""
    log = program.folder / "up.log"
    with log.open("wb") as out:
        up = program.start("-m", *shlex.split(line), "--no-flower", stdout=out, stderr=out)
    try:
        wait_for(lambda: "beat started" in log.read_text(), "everything is started", 150.0)
        listed, paused, _, removed = (run(each) for each in lines)
        assert json.loads(listed.stdout)["last_state"] == "succeeded"
        assert "is paused" in paused.stderr
        assert "its data set stays" in removed.stderr
        up.send_signal(signal.SIGTERM)
        assert up.wait(60) == 0
    finally:
        up.kill()
        up.wait()


def test_the_guide_has_no_block_that_these_tests_do_not_know() -> None:
    assert [language for language, _ in BLOCKS] == ["python", "sh", "sh", "toml", "sh", "sh", "sh", "sh", "sql"]
    assert len(COMMANDS) == 14


def test_the_file_shows_every_option_of_a_schedule(tmp_path: Path) -> None:
    table = tomllib.loads(FILE)["schedules"]["stories"]

    assert set(table) == set(KEYS)
    assert parse_schedule("stories", table, tmp_path).catch_up_limit == 7


def test_every_state_and_every_setting_is_named_as_it_is() -> None:
    table = GUIDE.split("| State of a run")[1].split("\n\n")[0]

    assert set(re.findall(r"`(\w+)`", table)) - {"reason", "gates"} == {state.value for state in RunState}
    for name, default in re.findall(r"`NIGHTMILL_([A-Z_]+)` \((\d+)\)", GUIDE):
        assert getattr(Settings(), name.lower()) == float(default)
