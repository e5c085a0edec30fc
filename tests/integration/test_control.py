"""What a user does to a job after submitting it, with the real program."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def state(program: Program) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(program.nightmill("status", "1", "--json").stdout)
    return told


@contextmanager
def ended(child: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        if child.poll() is None:
            child.terminate()
            child.communicate(timeout=60)


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


def test_a_paused_job_stands_still_and_is_finished_once_resumed(program: Program, tiny_model: Path) -> None:
    slow = replace(program, settings={"FAKE_ENGINE_ROWS_PER_SECOND": "10", "NIGHTMILL_HEARTBEAT_SECONDS": "0.2"})
    command = (write_prompts(program.folder, 60), "-o", "OUT", "--model", tiny_model, "--max-tokens", "4")
    submitted = slow.start(ROOT / "submit_job.py", *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with ended(submitted):
        until(lambda: any((program.folder / "OUT" / "_inprogress").glob("segments/*")), "a sealed segment")
        assert slow.nightmill("pause", "1").returncode == 0
        until(lambda: state(slow)["shards"] == {"ready": 1}, "a shard that was given back")

        before = state(slow)
        time.sleep(1.5)  # ten times the time of a row: a job that does not stand still is seen
        paused = state(slow)
        resumed = slow.nightmill("resume", "1")
        _, told = submitted.communicate(timeout=DEADLINE)

    assert (paused["state"], paused["counts"]) == ("paused", before["counts"])
    assert 0 < paused["done"] < 60
    assert "nightmill resume 1" in paused["missing"][0]
    assert (resumed.returncode, submitted.returncode) == (0, 0), told
    rows = pq.read_table(program.folder / "OUT" / "data")
    assert rows["row_index"].to_pylist() == list(range(60))
    assert slow.nightmill("pause", "1").returncode == 9


@pytest.mark.parametrize("options", [[], ["--now"]], ids=["patient", "now"])
def test_a_cancel_publishes_what_is_done_and_ends_with_6(
    program: Program, tiny_model: Path, options: list[str]
) -> None:
    slow = replace(
        program,
        settings={
            "FAKE_ENGINE_ROWS_PER_SECOND": "10",
            "NIGHTMILL_HEARTBEAT_SECONDS": "0.2",
            "NIGHTMILL_MAX_SEQUENCES": "8",
        },
    )
    command = (write_prompts(program.folder, 200), "-o", "OUT", "--model", tiny_model, "--max-tokens", "4")
    submitted = slow.start(ROOT / "submit_job.py", *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with ended(submitted):
        until(lambda: any((program.folder / "OUT" / "_inprogress").glob("segments/*")), "a sealed segment")

        cancelled = slow.nightmill("cancel", "1", *options)
        _, told = submitted.communicate(timeout=DEADLINE)

    assert (cancelled.returncode, submitted.returncode) == (0, 6), told
    statuses = pq.read_table(program.folder / "OUT" / "data")["status"].to_pylist()
    assert len(statuses) == 200
    assert set(statuses) == {"succeeded", "canceled"}


def test_a_job_expires_at_its_deadline_with_what_is_done_and_exit_code_7(program: Program, tiny_model: Path) -> None:
    slow = replace(program, settings={"FAKE_ENGINE_ROWS_PER_SECOND": "10", "NIGHTMILL_HEARTBEAT_SECONDS": "0.2"})
    many = write_prompts(program.folder, 2000)

    done = slow.submit(many, "-o", "OUT", "--model", tiny_model, "--max-tokens", "4", "--deadline", "12s")

    assert done.returncode == 7, done.stderr
    assert "reason: deadline: " in done.stderr
    rows = pq.read_table(program.folder / "OUT" / "data")
    assert rows["row_index"].to_pylist() == list(range(2000))
    left = [row for row in rows.to_pylist() if row["status"] != "succeeded"]
    assert 0 < len(left) < 2000
    assert {(row["status"], row["error_code"]) for row in left} == {("expired", "deadline")}


def test_a_job_that_fails_too_often_ends_early_with_the_reason_and_code_5(program: Program, tiny_model: Path) -> None:
    path = program.folder / "in.parquet"
    pq.write_table(pa.table({"prompt": ["ok"] * 50 + ["far too long for a context of 32 tokens"] * 50}), path)

    done = program.submit(
        path, "-o", "OUT", "--model", tiny_model, "--max-tokens", "4", "--order", "input", "--max-error-rate", "0.2"
    )

    assert done.returncode == 5, done.stderr
    assert "reason: max_error_rate: " in done.stderr
    assert pq.read_table(program.folder / "OUT" / "data").num_rows == 100


def test_a_key_that_stands_for_another_job_ends_with_9(program: Program, tiny_model: Path) -> None:
    key = ("--idempotency-key", "night 1")
    prompts = write_prompts(program.folder, 10)
    first = program.submit(prompts, "-o", "OUT", "--model", tiny_model, "--max-tokens", "4", *key)

    same = program.submit(prompts, "-o", "AGAIN", "--model", tiny_model, "--max-tokens", "4", *key)
    other = program.submit(prompts, "-o", "AGAIN", "--model", tiny_model, "--max-tokens", "5", *key)

    assert (first.returncode, same.returncode, other.returncode) == (0, 0, 9), other.stderr
    assert same.stdout == first.stdout == "1\n"
    assert "is completed" in same.stderr
    assert "max_tokens: 4 -> 5" in other.stderr
    assert not (program.folder / "AGAIN").exists()
