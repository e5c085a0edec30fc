"""What a user does to a job after submitting it, with the real program."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.program import DEADLINE, ROOT, Program

pytestmark = pytest.mark.integration


def until(look: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + DEADLINE
    while not look():
        assert time.monotonic() < give_up, f"not seen within {DEADLINE} s: {what}"
        time.sleep(0.05)


def write_prompts(folder: Path, num_rows: int) -> Path:
    path = folder / "in.parquet"
    pq.write_table(pa.table({"prompt": [f"say {row}" for row in range(num_rows)]}), path)
    return path


def listed(program: Program) -> list[dict[str, Any]]:
    return [json.loads(line) for line in program.nightmill("list").stdout.splitlines()]


def test_a_submit_that_is_killed_while_planning_is_resumed_by_the_same_command(
    program: Program, tiny_model: Path
) -> None:
    many = write_prompts(program.folder, 400_000)
    quick = replace(program, settings={"NIGHTMILL_LEASE_SECONDS": "2", "NIGHTMILL_HEARTBEAT_SECONDS": "0.5"})
    command = (many, "-o", "OUT", "--model", tiny_model, "--max-tokens", "1")
    first = quick.start(ROOT / "submit_job.py", *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until((program.folder / "OUT" / "_inprogress").is_dir, "a plan that is being written")
    first.kill()
    first.communicate()
    assert [job["state"] for job in listed(quick)] == ["validating"]

    again = quick.start(ROOT / "submit_job.py", *command, "--limit", "400000", stderr=subprocess.PIPE)
    _, refused = again.communicate(timeout=DEADLINE)
    resumed = quick.start(ROOT / "submit_job.py", *command, "--wait-timeout", "0", stderr=subprocess.PIPE)
    _, told = resumed.communicate(timeout=DEADLINE)

    assert "submitted with other options (limit: None -> 400000)" in refused
    assert "job 1 was submitted before; its planning had been broken off and is done now" in told
    assert listed(quick)[0]["rows"] == 400_000
