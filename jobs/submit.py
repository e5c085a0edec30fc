"""Submit a job: check, take the output directory, register, plan, queue. The same command again attaches or resumes.

Nothing half-written: a submission that is refused leaves output directory and database as they were, but for a failed
job in the history once planning had begun.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from jobs.freezing import freeze_plan
from jobs.options import SubmitOptions, changed_keys
from jobs.planning import Plan, Progress, make_plan, silent
from jobs.settings import Settings
from jobs.submission import Submission, check, submission_of
from storage import layout
from storage.errors import DatabaseDown, Fenced, InputInvalid, JobConflict, OutputConflict
from storage.output import Owner, drop_output, read_owner, take_output
from storage.records import Job
from storage.repository import Repository
from storage.states import JOB_FINAL, JobState

How = Literal["new", "replanned", "resumed", "attached", "paused", "ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A job in the queue, and how the command came by it: `new`; or it was there and `replanned`: its planning had been
    broken off and was done now; `resumed`: nobody is at work on it; `attached`: somebody is; `paused`; `ended`.
    `plan` is set when this command made it."""

    job: Job
    how: How
    plan: Plan | None


def dry_run(options: SubmitOptions, settings: Settings, progress: Progress = silent) -> Plan:
    """All of the checking and planning; registers nothing and leaves nothing. Raises InputInvalid, ModelUnknown."""
    submission = check(options, settings)
    with tempfile.TemporaryDirectory(prefix="nightmill-") as scratch:
        chosen = submission.new_rows(progress)
        return make_plan(submission.plan_task(Path(scratch) / "plan.parquet", chosen=chosen), progress)


def submit(
    options: SubmitOptions, repository: Repository, settings: Settings, progress: Progress = silent
) -> Submitted:
    """Raises InputInvalid, ModelUnknown, OutputConflict, JobConflict, DatabaseDown, and Fenced when the job was
    cancelled during planning."""
    submission = check(options, settings)
    job, is_new = _find_or_create(submission, repository)
    _refuse_other(job, submission)
    while job.state == JobState.VALIDATING:
        epoch = repository.claim_job(job.id, _me(), settings.lease_seconds)
        if epoch is not None:
            asked = _asked(job, submission, is_new, settings)
            try:
                plan, job = freeze_plan(job, epoch, asked, repository, settings, progress)
            except Fenced:
                job = repository.get_job(job.id)
                if job.state in JOB_FINAL:
                    raise
                continue  # it was so slow that another process has begun to plan it
            return Submitted(job=job, how="new" if is_new else "replanned", plan=plan)
        # Another process plans it, or was killed at it: then its lease runs out.
        progress("wait", 0, 0)
        time.sleep(min(1.0, settings.heartbeat_seconds))
        job = repository.get_job(job.id)
    return Submitted(job=job, how=_how(job, repository, settings), plan=None)


def _find_or_create(submission: Submission, repository: Repository) -> tuple[Job, bool]:
    """The job of this output directory; True if it was made now."""
    found = _known(submission, repository)
    if found is not None and _is_void(
        found, Path(found.output_uri), keyed=submission.options.idempotency_key is not None
    ):
        if not repository.retire_job(found.id):
            return _find_or_create(submission, repository)  # another submit was faster: look again
        owner = Owner(run_key=found.run_key, spec_hash=found.spec_hash)
        if owner != submission.owner:  # else the same submit may be at work there by now
            drop_output(Path(found.output_uri), owner)
        found = None
    resume = submission.options.resume
    if found is not None and resume == "never":
        raise JobConflict(
            f"{submission.out} belongs to job {found.id} ({found.state}) and --resume never was given; "
            "name another output directory"
        )
    if found is not None:
        return found, False
    if resume == "always":
        raise JobConflict(f"no job has the output directory {submission.out}, so there is nothing to resume")
    if (submission.out / layout.MANIFEST).exists():
        raise OutputConflict(
            f"{submission.out} holds the results of a job that this database does not know; "
            "name another output directory"
        )
    taken = take_output(submission.out, submission.owner)
    try:
        return repository.create_job(submission.new_job()), True
    except JobConflict:
        # The same command, at the same moment: whoever came first has it.
        found = _known(submission, repository)
        if found is None:
            raise
        if taken and found.output_uri != str(submission.out):  # the same key, with another output
            drop_output(submission.out, submission.owner)
        return found, False
    except DatabaseDown:
        raise  # the job may have been made all the same, and somebody may be at work on it
    except BaseException:
        if taken:
            drop_output(submission.out, submission.owner)
        raise


def _known(submission: Submission, repository: Repository) -> Job | None:
    """The job of this key, else of this output directory. Raises JobConflict when the latter has another key."""
    key = submission.options.idempotency_key
    found = repository.find_job(run_key=submission.run_key) if key is not None else None
    if found is not None:
        return found
    found = repository.find_job(output_uri=str(submission.out))
    if found is not None and key is not None and not _is_void(found, submission.out):
        raise JobConflict(
            f"{submission.out} belongs to job {found.id}, which was not submitted with --idempotency-key {key}; "
            "name another output directory"
        )
    return found


def _is_void(job: Job, out: Path, *, keyed: bool = False) -> bool:
    """Did the job end without a plan or a row, or were its results removed? Then its directory is free. A key still
    stands for a job whose results somebody took away.

    Raises JobConflict when the directory of an open job was removed.
    """
    if job.plan is None:
        return job.state in JOB_FINAL
    if job.state is JobState.FAILED and not (job.rows_succeeded or job.rows_errored or job.published_generation):
        return True  # it never began, so trying again is all that can be done with it
    if read_owner(out) is not None:
        return False
    if job.state not in JOB_FINAL:
        raise JobConflict(
            f"the output directory {out} of job {job.id} ({job.state}) was removed, and its plan with it; "
            f"run `nightmill cancel {job.id}`, then submit again"
        )
    return not keyed


def _refuse_other(job: Job, submission: Submission) -> None:
    """Raises InputInvalid (`changed`) or JobConflict when the job is not this submission's."""
    key = submission.options.idempotency_key
    if key is not None and (job.spec_hash, job.input_fingerprint) != (
        submission.spec_hash,
        submission.inputs.fingerprint,
    ):
        changes = "; ".join(changed_keys(job.spec, submission.spec)) or f"another input than {job.input_uri}"
        raise JobConflict(
            f"--idempotency-key {key} belongs to job {job.id}, which was submitted otherwise ({changes}); "
            "use another key for another job"
        )
    if job.spec_hash != submission.spec_hash:
        changes = "; ".join(changed_keys(job.spec, submission.spec))
        raise JobConflict(
            f"{job.output_uri} belongs to job {job.id}, which was submitted with other options ({changes}); "
            "submit with the old options to resume it, or name another output directory"
        )
    if job.input_fingerprint != submission.inputs.fingerprint:
        raise InputInvalid(
            "changed",
            f"the input {job.input_uri} has changed since job {job.id} was submitted, so it cannot be resumed; "
            "restore the input, or submit with another output directory",
        )


def _asked(job: Job, submission: Submission, is_new: bool, settings: Settings) -> Callable[[], Submission]:
    """What was asked first stands, also order and shards; the record of an older version does not have them."""
    if is_new or not job.options:
        return lambda: submission
    return partial(submission_of, job, settings)


def _how(job: Job, repository: Repository, settings: Settings) -> How:
    if job.state in JOB_FINAL:
        return "ended"
    if job.state is JobState.PAUSED:
        return "paused"
    live = repository.workers(settings.worker_stale_seconds)
    return "attached" if any(worker.model_key == job.model.key for worker in live) else "resumed"


def _me() -> str:
    return f"submit-{os.getpid()}@{socket.gethostname()}"
