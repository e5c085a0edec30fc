"""Real mode with an address that is missing, out of reach, or behind: exit code, message, nothing written."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.program import Program
from tests.integration.refusals import GOOD, assert_refused, job_states, write

pytestmark = pytest.mark.integration


def real_mode(program: Program, **addresses: str) -> Program:
    return replace(program, settings={f"NIGHTMILL_{name.upper()}_URL": value for name, value in addresses.items()})


def test_one_address_without_the_other_is_a_usage_error_that_names_the_missing_one(
    program: Program, tiny_model: Path
) -> None:
    good = write(program.folder / "in.parquet", GOOD)
    half = real_mode(program, broker="redis://127.0.0.1:1/0")

    assert_refused(half.submit(good, "-o", "OUT", "--model", tiny_model), 2, ["NIGHTMILL_DATABASE_URL is not"])


def test_a_broker_out_of_reach_ends_with_8_and_writes_nothing(program: Program, tiny_model: Path) -> None:
    good = write(program.folder / "in.parquet", GOOD)
    database = f"sqlite:///{program.folder}/jobs.db"
    real = real_mode(program, broker="redis://:secret@127.0.0.1:1/0", database=database)
    assert real.nightmill("db", "upgrade").returncode == 0

    done = real.submit(good, "-o", "OUT", "--model", tiny_model)

    assert_refused(done, 8, ["broker", "127.0.0.1:1"])
    assert "secret" not in done.stderr
    assert not (program.folder / "OUT").exists()
    assert job_states(program.folder / "jobs.db") == []


def test_a_database_out_of_reach_ends_with_8_and_writes_nothing(program: Program, tiny_model: Path) -> None:
    good = write(program.folder / "in.parquet", GOOD)
    real = real_mode(program, broker="redis://127.0.0.1:1/0", database="postgresql://me:secret@127.0.0.1:1/db")

    done = real.submit(good, "-o", "OUT", "--model", tiny_model)

    assert_refused(done, 8, ["database", "127.0.0.1:1"])
    assert "secret" not in done.stderr
    assert not (program.folder / "OUT").exists()


def test_an_old_schema_ends_with_8_and_the_command_that_mends_it(program: Program, tiny_model: Path) -> None:
    good = write(program.folder / "in.parquet", GOOD)
    with sqlite3.connect(program.folder / "jobs.db") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    database.close()
    real = real_mode(program, broker="redis://127.0.0.1:1/0", database=f"sqlite:///{program.folder}/jobs.db")

    done = real.submit(good, "-o", "OUT", "--model", tiny_model)

    assert_refused(done, 8, ["nightmill db upgrade"])
    assert not (program.folder / "OUT").exists()
