"""From a slot to the job that is to be made for it: the same checks as submit, before anything is written."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from jobs.models import ModelUnknown
from jobs.schedules.cron import Slot
from jobs.schedules.spec import options_of
from jobs.settings import Settings
from jobs.submission import check
from storage.dataset.links import refuse_links
from storage.dataset.names import check_label_column
from storage.errors import FileDamaged, InputInvalid, OutputConflict
from storage.records import NewJob
from storage.schedule_records import NewSchedule

ABSENT = frozenset({"missing_file", "empty"})
BEING_WRITTEN = frozenset({"truncated", "not_parquet"})  # or damaged: time will tell


@dataclass(frozen=True, slots=True)
class Ready:
    """A job in state validating may be made of it. `run_id` names its folder in the data set."""

    run_id: str
    job: NewJob


@dataclass(frozen=True, slots=True)
class NotYet:
    """There is no input that can be read; `absent`: there is none at all, or it has no row."""

    reason: str
    absent: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """Waiting would not help."""

    reason: str


Prepared = Ready | NotYet | Refused


def prepare(declared: NewSchedule, slot: Slot, settings: Settings) -> Prepared:
    """Opens input, tokenizer and template, as submit does."""
    dataset = Path(declared.dataset)
    run_id = uuid.uuid4().hex[:12]  # no two attempts write into one folder, whatever becomes of the database
    try:
        refuse_links(dataset, slot.label, run_id)
        submission = check(options_of(declared, slot, run_id), settings)
        check_label_column(submission.columns.passed.names)
        return Ready(run_id, submission.new_job())
    except InputInvalid as error:
        if error.code in ABSENT | BEING_WRITTEN:
            return NotYet(str(error), absent=error.code in ABSENT)
        return Refused(str(error))
    except OSError as error:
        return NotYet(str(error), absent=False)
    except (ModelUnknown, OutputConflict, FileDamaged, ValueError) as error:
        return Refused(str(error))
