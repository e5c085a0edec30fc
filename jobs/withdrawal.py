"""End a job that came to nothing, and leave nothing of it behind but its line in the history."""

from __future__ import annotations

from pathlib import Path

from storage.output import Owner, drop_output
from storage.records import Job
from storage.repository import Repository
from storage.states import JOB_RUNNABLE

MANY_JOBS = 10_000


def withdraw(repository: Repository, job: Job, epoch: int | None, why: str) -> None:
    """Fail the job; if no row of it was ever sealed, give its output directory and its run key back as well.

    `epoch`: the right to plan or publish under which this is done; None for a job that nobody has begun.
    Raises Fenced, DatabaseDown.
    """
    repository.fail_job(job.id, epoch, why)
    give_back(repository, repository.get_job(job.id))


def withdraw_unserved(repository: Repository, key: str, why: str, stale_seconds: float) -> int | None:
    """End the jobs of a model that a worker, which is gone by now, could not serve, begun or not, so that nobody waits
    for ever; how many.

    None while another live worker has the model, if only to load it: perhaps this machine alone is at fault.
    """
    live = repository.workers(stale_seconds)
    if any(worker.model_key == key and worker.state != "gone" for worker in live):
        return None
    unserved = [job for job in repository.list_jobs(MANY_JOBS) if job.model.key == key and job.state in JOB_RUNNABLE]
    for job in unserved:
        withdraw(repository, job, None, why)
    return len(unserved)


def give_back(repository: Repository, job: Job) -> None:
    """Free the output directory of an ended job, unless there is something in it that somebody may want.

    Can be repeated, also by another process at the same time: whoever fails a job may be stopped half-way in here.
    """
    holder = repository.find_job(output_uri=job.output_uri)
    is_empty = job.rows_succeeded + job.rows_errored == 0 and not job.published_generation
    if holder is not None and holder.id == job.id and is_empty:
        drop_output(Path(job.output_uri), Owner(run_key=job.run_key, spec_hash=job.spec_hash))
        repository.retire_job(job.id)
