"""The program as its users meet it: streams, exit codes, waiting, interrupting, and who is said to be missing."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.program import DEADLINE, ROOT, Program

pytestmark = pytest.mark.integration

NUM_ROWS = 40


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("input") / "in.parquet"
    pq.write_table(pa.table({"prompt": [f"say {row}" for row in range(NUM_ROWS)], "tag": list(range(NUM_ROWS))}), path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, prompts: Path, tiny_model: Path) -> Program:
    """A place where job 1 has completed."""
    program = Program(tmp_path_factory.mktemp("finished"))
    done = program.submit(prompts, "-o", "OUT", "--model", tiny_model, "--max-tokens", "4")
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    (program.folder / "stderr.txt").write_text(done.stderr)
    return program


def asked(program: Program, *arguments: str) -> dict[str, Any]:
    """The one JSON object that a command prints into a pipe."""
    done = program.nightmill(*arguments)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def until(look: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + DEADLINE
    while not look():
        assert time.monotonic() < give_up, f"not seen within {DEADLINE} s: {what}"
        time.sleep(0.1)


@contextmanager
def running(child: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
        child.communicate(timeout=60)


def test_submit_prints_plan_and_progress_on_stderr(finished: Program) -> None:
    told = (finished.folder / "stderr.txt").read_text()

    assert f"{NUM_ROWS} rows" in told
    assert "prompt from column 'prompt'" in told
    assert "predicted hit rate" in told
    assert f"{NUM_ROWS}/{NUM_ROWS} rows" in told


def test_status_counts_sum_to_the_total(finished: Program) -> None:
    told = asked(finished, "status", "1", "--json")

    counts = told["counts"]
    assert counts["total"] == counts["succeeded"] == NUM_ROWS
    assert sum(count for name, count in counts.items() if name != "total") == counts["total"]
    assert (told["state"], told["missing"]) == ("completed", [])


def test_stats_equal_a_recount_of_the_rows(finished: Program) -> None:
    told = asked(finished, "stats", "1", "--json")

    rows = pq.read_table(finished.folder / "OUT" / "data").to_pylist()
    assert told["rows"] == len(rows) == NUM_ROWS
    assert told["prompt_tokens"] == sum(row["prompt_tokens"] for row in rows)
    assert told["prompt_tokens"] == told["cached_tokens"] + told["computed_tokens"]
    assert told["completion_tokens"] == sum(row["completion_tokens"] for row in rows)
    assert told["hit_rate"] == told["cached_tokens"] / told["prompt_tokens"]
    assert [group["kind"] for group in told["groups"]] == ["full", "sliding"]
    metrics = pq.read_table(finished.folder / "OUT" / "_meta" / "metrics").to_pylist()
    assert told["planned_cached_tokens"] == sum(row["planned_tokens"] for row in metrics) > told["cached_tokens"]
    recount = Counter[str]()
    for row in metrics:
        recount.update({limit["name"]: limit["tokens"] for limit in row["limited_by"]})
    assert list(told["limited_by"].items()) == recount.most_common()
    assert told["computed_over_bound"] == told["computed_tokens"] / told["lower_bound_tokens"]


def test_results_in_a_pipe_are_json_lines_in_input_order(finished: Program) -> None:
    done = finished.nightmill("results", "1", "--limit", "7")

    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["row_index"], row["tag"]) for row in rows] == [(row, row) for row in range(7)]


def test_the_same_command_again_attaches_and_runs_nothing(finished: Program, prompts: Path, tiny_model: Path) -> None:
    done = finished.submit(prompts, "-o", "OUT", "--model", tiny_model, "--max-tokens", "4")

    assert (done.returncode, done.stdout) == (0, "1\n")
    assert "was submitted before" in done.stderr


def test_watch_of_a_finished_job_ends_at_once_with_its_code(finished: Program) -> None:
    told = asked(finished, "watch", "1")

    assert (told["state"], told["done"]) == ("completed", NUM_ROWS)


def test_a_dry_run_prints_the_plan_and_leaves_nothing(finished: Program, prompts: Path, tiny_model: Path) -> None:
    done = finished.submit(prompts, "-o", "DRY", "--model", tiny_model, "--dry-run")

    assert (done.returncode, done.stdout) == (0, "")
    assert f"{NUM_ROWS} rows" in done.stderr
    assert not (finished.folder / "DRY").exists()
    assert len(finished.nightmill("list").stdout.splitlines()) == 1


def test_ctrl_c_keeps_what_is_done_and_the_same_command_resumes(
    program: Program, prompts: Path, tiny_model: Path
) -> None:
    slow = replace(program, settings={"FAKE_ENGINE_ROWS_PER_SECOND": "5"})
    command = (prompts, "-o", "OUT", "--model", tiny_model, "--max-tokens", "4")
    started = slow.start(ROOT / "submit_job.py", *command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with running(started):
        segments = program.folder / "OUT" / "_inprogress" / "segments"
        until(lambda: segments.is_dir() and any(segments.iterdir()), "a sealed segment")
        family = psutil.Process(started.pid).children(recursive=True)

        started.send_signal(signal.SIGINT)
        _, told = started.communicate(timeout=DEADLINE)

    assert started.returncode == 130, told
    assert "the same command resumes it" in told
    assert len(family) >= 2, "broker and worker should have been children"
    assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    kept = asked(program, "status", "1")["counts"]["succeeded"]
    assert 0 < kept < NUM_ROWS

    resumed = program.submit(*command)

    assert (resumed.returncode, resumed.stdout) == (0, "1\n"), resumed.stderr
    rows = pq.read_table(program.folder / "OUT" / "data")["row_index"].to_pylist()
    assert rows == list(range(NUM_ROWS))
    assert asked(program, "stats", "1")["rows"] == NUM_ROWS


def test_a_wait_that_is_over_ends_with_124_and_says_how_to_go_on(
    program: Program, prompts: Path, tiny_model: Path
) -> None:
    slow = replace(program, settings={"FAKE_ENGINE_ROWS_PER_SECOND": "0.5"})

    done = slow.submit(prompts, "-o", "OUT", "--model", tiny_model, "--wait-timeout", "0.5")

    assert done.returncode == 124, done.stderr
    assert "the same command resumes it" in done.stderr


@pytest.fixture
def real(program: Program, broker: str) -> Program:
    """Real mode: a broker and a database by URL."""
    named = replace(
        program,
        settings={
            "NIGHTMILL_BROKER_URL": broker,
            "NIGHTMILL_DATABASE_URL": f"sqlite:///{program.folder}/jobs.db",
            "NIGHTMILL_HEARTBEAT_SECONDS": "0.5",
            "NIGHTMILL_WORKER_STALE_SECONDS": "10",
        },
    )
    assert named.nightmill("db", "upgrade").returncode == 0
    return named


def test_in_real_mode_submit_returns_at_once_and_names_the_processes_that_are_missing(
    real: Program, prompts: Path, tiny_model: Path
) -> None:
    done = real.submit(prompts, "-o", "OUT", "--model", tiny_model, "--max-tokens", "4")

    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    for told in (done.stderr, "\n".join(asked(real, "status", "1")["missing"])):
        assert f"nightmill worker --model {tiny_model}" in told
        assert "nightmill reconciler" in told
    doctor = real.nightmill("doctor", "--json")
    assert doctor.returncode == 8
    checks = {line["check"]: line for line in map(json.loads, doctor.stdout.splitlines())}
    assert "nightmill worker --model" in checks["workers"]["do"]
    assert checks["broker"]["ok"]

    with (
        running(real.start("-m", "nightmill", "worker", "--model", tiny_model, stderr=subprocess.DEVNULL)),
        running(real.start("-m", "nightmill", "reconciler", stderr=subprocess.DEVNULL)),
    ):
        watched = real.nightmill("watch", "1")
        missing = asked(real, "status", "1")["missing"]

    lines = [json.loads(line) for line in watched.stdout.splitlines()]
    assert watched.returncode == 0, watched.stderr
    assert (lines[-1]["state"], lines[-1]["done"]) == ("completed", NUM_ROWS)
    assert missing == []


def test_the_advised_command_serves_the_job_whatever_the_worker_s_settings_are(
    real: Program, prompts: Path, tiny_model: Path
) -> None:
    other = replace(real, settings={**real.settings, "NIGHTMILL_DTYPE": "bfloat16"})
    assert other.submit(prompts, "-o", "OUT", "--model", tiny_model, "--max-tokens", "4").returncode == 0
    advice = next(line for line in asked(real, "status", "1")["missing"] if "worker" in line)
    command = shlex.split(advice.split("`")[1])

    with (
        running(real.start("-m", *command, stderr=subprocess.DEVNULL)),
        running(real.start("-m", "nightmill", "reconciler", stderr=subprocess.DEVNULL)),
    ):
        watched = real.nightmill("watch", "1", "--timeout", "100")

    assert watched.returncode == 0, watched.stderr


def test_a_cancelled_job_ends_with_6(real: Program, prompts: Path, tiny_model: Path) -> None:
    submitted = real.submit(prompts, "-o", "OUT", "--model", tiny_model)
    assert submitted.returncode == 0, submitted.stderr

    assert real.nightmill("cancel", "1").returncode == 0
    with running(real.start("-m", "nightmill", "reconciler", stderr=subprocess.DEVNULL)):
        watched = real.nightmill("watch", "1")

    assert watched.returncode == 6, watched.stderr
    assert json.loads(watched.stdout.splitlines()[-1])["state"] == "cancelled"


def test_engine_options_belong_to_the_worker_in_real_mode(real: Program, prompts: Path, tiny_model: Path) -> None:
    done = real.submit(prompts, "-o", "OUT", "--model", tiny_model, "--no-block-sharing", "--max-sequences", "4")

    assert done.returncode == 2
    assert "--max-sequences, --no-block-sharing" in done.stderr
    assert not (real.folder / "OUT").exists()
