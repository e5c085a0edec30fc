"""Freeze the plan of a job: under its lease, from its record, by whoever comes along.

Submit does it first. If its process dies, the job stays in state validating and its lease runs out; then the same
submit, the reconciler or whoever creates jobs takes the lease and does it all again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from jobs.planning import Plan, Progress, make_plan
from jobs.settings import Settings
from jobs.submission import Submission
from jobs.withdrawal import give_back, withdraw
from storage import layout
from storage.durable import make_folder
from storage.errors import DatabaseDown, Fenced, InputInvalid, StorageError
from storage.output import Owner, forget_plannings, take_output
from storage.parquet.chosen import write_chosen
from storage.parquet.reader import open_input
from storage.records import Job
from storage.repository import Repository
from storage.states import JOB_FINAL


class PlanningLeft(Exception):
    """This process must leave; the job waits for the next one that plans it. Progress raises it."""


class InputUnseen(PlanningLeft):
    """What the job needs cannot be seen from here; the message, which the job's record shows, says what."""


def freeze_plan(
    job: Job,
    epoch: int,
    submission: Callable[[], Submission],
    repository: Repository,
    settings: Settings,
    progress: Progress,
) -> tuple[Plan, Job]:
    """Plan and queue under the epoch. A failure ends the job and gives OUT back, unless somebody else took it over.

    Raises what `submission` and `make_plan` raise, OutputConflict, Fenced, whatever went wrong, when the job was
    cancelled or taken over; PlanningLeft and DatabaseDown, and then the job waits for the next planner.
    """
    out = Path(job.output_uri)
    try:
        asked = submission()
        take_output(out, Owner(run_key=job.run_key, spec_hash=job.spec_hash))
        forget_plannings(out, epoch)
        key = f"{layout.planning(epoch)}/plan.parquet"
        make_folder((out / key).parent)  # durably, before anything that need not last is spilled there
        renew = partial(repository.renew_job, job.id, epoch, settings.lease_seconds)
        watched = _both(_renewing(renew, settings.heartbeat_seconds), progress)
        chosen = asked.new_rows(watched)
        plan = make_plan(asked.plan_task(out / key, key, chosen=chosen), watched)
        if open_input(asked.options.inputs).fingerprint != job.input_fingerprint:
            raise InputInvalid("changed", "the input was changed while it was read; submit again when it is complete")
        renew()
        if chosen is not None:
            write_chosen(out / layout.INPUT_ROWS, chosen)
        return plan, repository.queue_job(job.id, epoch, plan.record, plan.shards)
    except (PlanningLeft, DatabaseDown) as left:  # an outage says nothing of the job
        why = str(left) if isinstance(left, InputUnseen) else None
        with suppress(StorageError):  # then the lease runs out by itself
            repository.release_job(job.id, epoch, why)
        raise
    except BaseException as error:
        try:
            _withdraw(job, epoch, repository, str(error) or type(error).__name__)
        except Fenced as fenced:
            if isinstance(error, Exception):
                raise fenced from error
        except StorageError:
            pass  # the first error is the one to tell
        raise


def _withdraw(job: Job, epoch: int, repository: Repository, why: str) -> None:
    try:
        withdraw(repository, job, epoch, why)
    except Fenced:
        now = repository.get_job(job.id)
        if now.state in JOB_FINAL and now.plan is None:
            give_back(repository, now)
        raise  # otherwise another process took it over; OUT is its own


def _renewing(renew: Callable[[], None], every_seconds: float) -> Progress:
    """Progress that keeps the right to plan. While SQL is down nobody can take it, so planning goes on."""
    last = time.monotonic()

    def tick(stage: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= every_seconds:
            with suppress(DatabaseDown):
                renew()
            last = time.monotonic()

    return tick


def _both(first: Progress, second: Progress) -> Progress:
    def call(stage: str, done: int, total: int) -> None:
        first(stage, done, total)
        second(stage, done, total)

    return call
