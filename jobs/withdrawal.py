"""End a job that came to nothing, and leave nothing of it behind but its line in the history."""

from __future__ import annotations

from pathlib import Path

from storage.output import Owner, drop_output
from storage.records import Job
from storage.repository import Repository


def withdraw(repository: Repository, job: Job, epoch: int | None, why: str) -> None:
    """Fail the job; if no row of it was ever sealed, give its output directory and its run key back as well.

    `epoch`: the right to plan or publish under which this is done; None for a job that nobody has begun.
    Raises Fenced, DatabaseDown.
    """
    repository.fail_job(job.id, epoch, why)
    give_back(repository, repository.get_job(job.id))


def give_back(repository: Repository, job: Job) -> None:
    """Free the output directory of an ended job, unless there is something in it that somebody may want.

    Can be repeated, also by another process at the same time: whoever fails a job may be stopped half-way in here.
    """
    holder = repository.find_job(output_uri=job.output_uri)
    is_empty = job.rows_succeeded + job.rows_errored == 0 and not job.published_generation
    if holder is not None and holder.id == job.id and is_empty:
        drop_output(Path(job.output_uri), Owner(run_key=job.run_key, spec_hash=job.spec_hash))
        repository.retire_job(job.id)
