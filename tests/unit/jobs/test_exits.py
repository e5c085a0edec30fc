"""Each error has one code, and each code one meaning."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.errors import ModelRefused
from jobs import exits
from jobs.exits import Exit
from storage import errors
from storage.records import Job
from storage.states import JobState


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (exits.UsageError("x"), 2),
        (errors.InputInvalid("missing_file", "x"), 3),
        (ModelRefused("x"), 3),
        (errors.NoSuchJob("x"), 9),
        (errors.JobConflict("x"), 9),
        (errors.OutputConflict("x"), 9),
        (errors.DatabaseDown("x"), 8),
        (errors.SchemaOutdated("x"), 8),
        (exits.TimedOut("x"), 124),
        (exits.Interrupted("x"), 130),
    ],
)
def test_known_errors_end_with_the_documented_code(error: Exception, code: int) -> None:
    failure = exits.explain(error)

    assert failure is not None
    assert failure.code == code
    assert failure.message.startswith("x")


def test_an_unknown_error_is_a_bug_and_keeps_its_traceback() -> None:
    assert exits.explain(KeyError("x")) is None


def test_an_old_schema_comes_with_the_command_to_run() -> None:
    failure = exits.explain(errors.SchemaOutdated("the database is at 0001"))

    assert failure is not None
    assert "nightmill db upgrade" in failure.message


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"state": JobState.COMPLETED, "rows_succeeded": 100}, Exit.DONE),
        ({"state": JobState.COMPLETED, "rows_succeeded": 99, "rows_errored": 1}, Exit.ROW_ERRORS),
        ({"state": JobState.FAILED, "rows_errored": 100}, Exit.JOB_FAILED),
        ({"state": JobState.CANCELLED, "rows_canceled": 100}, Exit.CANCELLED),
        ({"state": JobState.EXPIRED, "rows_expired": 100}, Exit.EXPIRED),
    ],
)
def test_a_finished_job_ends_with_the_code_of_its_state(
    make_job: Callable[..., Job], changes: dict[str, object], code: Exit
) -> None:
    assert exits.of_job(make_job(**changes)) is code


def test_the_table_names_every_code_with_its_meaning() -> None:
    lines = exits.table().splitlines()

    assert [int(line.split()[0]) for line in lines] == [0, 2, 3, 4, 5, 6, 7, 8, 9, 124, 130]
    assert all(code.meaning in exits.table() for code in Exit)
