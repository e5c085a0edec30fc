"""How a command ends: the exit codes, and the one place that turns an exception into a code and a message.

A message says what happened, to what, and what to do. Whatever is not listed here is a bug of ours and keeps its
traceback.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from storage.records import Job
from storage.states import JobState


class Exit(IntEnum):
    """What the shell sees. `meaning` is the text of `nightmill --help` and of the README."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Exit:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "done, all rows succeeded (or submitted)"
    USAGE = 2, "usage: an option or a setting is wrong"
    INPUT_INVALID = 3, "the input or the model cannot be used; nothing was written"
    ROW_ERRORS = 4, "completed, and some rows failed (see `results --errors`)"
    JOB_FAILED = 5, "the job failed"
    CANCELLED = 6, "the job was cancelled"
    EXPIRED = 7, "the job expired"
    UNREACHABLE = 8, "broker, database or worker out of reach, or another schema in the database"
    CONFLICT = (
        9,
        "no such job, schedule or data set, it is in another state, or the output, key or name belongs to another",
    )
    TIMED_OUT = 124, "--wait-timeout passed; the job goes on"
    INTERRUPTED = 130, "Ctrl-C; the message says how to go on"


def table() -> str:
    """All codes, one line each, as the help prints them."""
    return "\n".join(f"{code.value:>4}  {code.meaning}" for code in Exit)


class UsageError(Exception):
    """An option or a setting cannot be honoured as given."""


class OwnerMissing(Exception):
    """Embedded mode, and no owner runs that could serve what was asked."""


class TimedOut(Exception):
    """The wait was given up; the job goes on."""


class Interrupted(Exception):
    """Ctrl-C; the message says what goes on and how to come back."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How to end: the exit code and what to tell the user."""

    code: Exit
    message: str


def explain(error: BaseException) -> Failure | None:
    """The code and message of an error that we know, or None for a bug of ours."""
    code = next((code for kind, code in _codes() if isinstance(error, kind)), None)
    return None if code is None else Failure(code, _message(error))


def _codes() -> tuple[tuple[type[BaseException], Exit], ...]:
    """Every error that ends a command with a message, a subclass before its base.

    Imported when something went wrong, so that a command that goes well pays for none of it.
    """
    from engine.errors import ConfigError, EngineDead, ModelRefused
    from jobs.broker import BrokerFailed
    from jobs.devices import DeviceError
    from jobs.dispatch import BrokerDown
    from jobs.models import ModelUnknown
    from storage import errors

    return (
        (UsageError, Exit.USAGE),
        (ConfigError, Exit.USAGE),
        (DeviceError, Exit.USAGE),
        (errors.InputInvalid, Exit.INPUT_INVALID),
        (ModelUnknown, Exit.INPUT_INVALID),
        (ModelRefused, Exit.INPUT_INVALID),
        (errors.NoSuchJob, Exit.CONFLICT),
        (errors.NoSuchDataset, Exit.CONFLICT),
        (errors.NoSuchSchedule, Exit.CONFLICT),
        (errors.ScheduleConflict, Exit.CONFLICT),
        (errors.DatasetBusy, Exit.UNREACHABLE),
        (errors.JobConflict, Exit.CONFLICT),
        (errors.OutputConflict, Exit.CONFLICT),
        (errors.Fenced, Exit.CONFLICT),
        (errors.FileDamaged, Exit.UNREACHABLE),
        (errors.FileUnreadable, Exit.UNREACHABLE),
        (errors.SchemaOutdated, Exit.UNREACHABLE),
        (errors.DatabaseDown, Exit.UNREACHABLE),
        (BrokerDown, Exit.UNREACHABLE),
        (BrokerFailed, Exit.UNREACHABLE),
        (OwnerMissing, Exit.UNREACHABLE),
        (EngineDead, Exit.UNREACHABLE),
        (errors.StorageError, Exit.USAGE),  # what is left: an address that cannot be one
        (TimedOut, Exit.TIMED_OUT),
        (Interrupted, Exit.INTERRUPTED),
    )


def _message(error: BaseException) -> str:
    from storage.errors import SchemaOutdated

    text = str(error) or type(error).__name__
    if isinstance(error, SchemaOutdated) and "db upgrade" not in text:
        return f"{text}; run `nightmill db upgrade`"
    return text


def of_job(job: Job) -> Exit:
    """The exit code of a finished job."""
    match job.state:
        case JobState.COMPLETED:
            return Exit.DONE if job.rows_succeeded == job.rows_total else Exit.ROW_ERRORS
        case JobState.CANCELLED:
            return Exit.CANCELLED
        case JobState.EXPIRED:
            return Exit.EXPIRED
        case JobState.FAILED:
            return Exit.JOB_FAILED
        case _:
            raise AssertionError(f"job {job.id} is {job.state}, which is not an end")
