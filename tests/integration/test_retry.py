"""Rows of a published job run again, with the real program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.embedded import database_url
from jobs.settings import Settings
from storage import layout
from storage.durable import sha256_file
from storage.records import JobId
from storage.repository import Repository
from storage.states import JobState
from tests.integration.program import Program

pytestmark = pytest.mark.integration

ROWS = 60
TOO_LONG = "x" * 40


def submitted(program: Program, model: Path) -> dict[int, dict[str, Any]]:
    """A job of short answers, one row of which is too long for the model; its rows."""
    prompts = [TOO_LONG if row == 7 else f"say {row}" for row in range(ROWS)]
    pq.write_table(pa.table({"prompt": prompts}), program.folder / "in.parquet")
    done = program.submit("in.parquet", "-o", "OUT", "--model", model, "--max-tokens", "2", "--n", "2")
    assert done.returncode == 4, done.stderr
    return rows(program)


def rows(program: Program) -> dict[int, dict[str, Any]]:
    table = pq.read_table(program.folder / "OUT" / layout.DATA)
    return {row["row_index"] * 2 + row["sample_index"]: row for row in table.to_pylist()}


def manifest(program: Program) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((program.folder / "OUT" / layout.MANIFEST).read_bytes())
    return content


def test_rows_that_were_cut_off_run_again_with_more_room_and_replace_the_old_ones(
    program: Program, tiny_model: Path
) -> None:
    before = submitted(program, tiny_model)
    cut = {row["row_index"] for row in before.values() if row["finish_reason"] == "length"}
    assert 0 < len(cut) < ROWS - 1

    again = program.nightmill("retry", "1", "--finish-reason", "length", "--set", "max_tokens=16")

    assert again.returncode == 4, again.stderr
    assert f"{len(cut)} rows run again for generation 2" in again.stderr
    after = rows(program)
    assert list(after) == list(before)
    assert {row["row_index"] for key, row in after.items() if row != before[key]} == cut
    assert all(row["completion_tokens"] <= 16 for row in after.values() if row["row_index"] in cut)
    assert any(row["completion_tokens"] > 2 for row in after.values() if row["row_index"] in cut)
    assert (after[14]["error_code"], manifest(program)["generation"]) == ("context_length", 2)
    _check(program, generation=2)


def test_errors_run_again_and_old_generations_are_collected(program: Program, tiny_model: Path) -> None:
    before = submitted(program, tiny_model)

    again = program.nightmill("retry", "1", "--status", "errored", "--wait")
    would = program.nightmill("gc", "--dry-run")
    collected = program.nightmill("gc", "1")
    nothing = program.nightmill("gc")

    assert again.returncode == 4, again.stderr
    assert "1 rows run again for generation 2" in again.stderr
    assert rows(program) == before  # it is too long as ever
    assert would.stdout == collected.stdout
    assert f"{layout.META}/manifest-0001.json" in would.stdout
    assert nothing.stdout == ""
    assert not (program.folder / "OUT" / layout.manifest_generation(1)).exists()
    assert len(program.nightmill("results", "1").stdout.splitlines()) == len(before)
    _check(program, generation=2)


def test_what_cannot_be_honoured_is_refused_by_name_and_changes_nothing(program: Program, tiny_model: Path) -> None:
    before = submitted(program, tiny_model)

    def refused(*arguments: str) -> tuple[int, str]:
        ended = program.nightmill("retry", *arguments)
        return ended.returncode, ended.stderr

    unknown = refused("1", "--status", "errored", "--set", "max_token=3")
    wrong = refused("1", "--status", "errored", "--set", "temperature=-1")
    samples = refused("1", "--status", "errored", "--set", "n=3")
    status = refused("1", "--status", "failed")
    nothing = refused("1")
    nobody = refused("1", "--status", "expired")
    missing = refused("4", "--status", "errored")
    pq.write_table(pa.table({"prompt": ["other"] * ROWS}), program.folder / "in.parquet")
    changed = refused("1", "--status", "errored")

    for (code, told), wanted_code, wanted in (
        (unknown, 2, "'max_token' is not a sampling option"),
        (wrong, 2, "temperature is -1"),
        (samples, 2, "--set n cannot be honoured"),
        (status, 2, "--status is 'failed'"),
        (nothing, 2, "no row is chosen"),
        (nobody, 0, "no row of job 1 matches"),
        (missing, 9, "there is no job 4"),
        (changed, 3, "in.parquet has changed since job 1 was submitted"),
    ):
        assert (code, wanted in told) == (wanted_code, True), told
    assert rows(program) == before
    assert not (program.folder / "OUT" / layout.work(2)).exists()
    _check(program, generation=1)


def _check(program: Program, generation: int) -> None:
    """The records are true, the files are as the manifest says, and no work is left."""
    repository = Repository(database_url(Settings(home=program.folder / "home")))
    job = repository.get_job(JobId(1))
    repository.check_integrity()
    repository.close()
    told = manifest(program)
    out = program.folder / "OUT"
    assert (job.state, job.generation, job.published_generation) == (JobState.COMPLETED, generation, generation)
    assert (job.rows_total, job.rows_succeeded, job.rows_errored) == (
        told["rows"],
        told["counts"]["succeeded"],
        told["counts"]["errored"],
    )
    assert job.manifest_sha256 == sha256_file(out / layout.MANIFEST)
    for part in (*told["parts"], *told["metrics"], *told["errors"]):
        assert sha256_file(out / part["path"]) == part["sha256"]
    assert not (out / layout.work(generation)).exists()
