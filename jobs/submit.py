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
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jobs.columns import Columns, choose_columns
from jobs.intake import RowEncoder
from jobs.models import ResolvedModel, resolve_model
from jobs.options import SubmitOptions, changed_keys, derive_seed, hash_spec
from jobs.planner import CutLimits
from jobs.planning import Plan, PlanTask, Progress, make_plan, silent
from jobs.prompts import PromptEncoder
from jobs.sampling import SamplingInvalid, check_overrides
from jobs.settings import Settings
from storage import layout
from storage.durable import move, sync_folder
from storage.errors import Fenced, InputInvalid, JobConflict, OutputConflict, StorageError
from storage.output import Owner, drop_output, read_owner, sweep, take_output
from storage.parquet.reader import InputFiles, open_input
from storage.records import Job, NewJob
from storage.repository import Repository
from storage.states import JOB_FINAL, JobState

How = Literal["new", "attached", "resumed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A job in the queue, and how the command came by it: `new`; `resumed`: it was there and nobody is at work on it;
    `attached`: it was there and has ended or is being worked on. `plan` is set when this command made it."""

    job: Job
    how: How
    plan: Plan | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """A submission whose input, model and options have been checked; nothing has been written."""

    options: SubmitOptions
    settings: Settings
    out: Path
    model: ResolvedModel
    inputs: InputFiles
    columns: Columns
    rows: RowEncoder
    spec: dict[str, Any]
    spec_hash: str
    job_seed: int

    @property
    def run_key(self) -> str:
        return str(self.out)

    @property
    def owner(self) -> Owner:
        return Owner(run_key=self.run_key, spec_hash=self.spec_hash)


def dry_run(options: SubmitOptions, settings: Settings, progress: Progress = silent) -> Plan:
    """All of the checking and planning; registers nothing and leaves nothing. Raises InputInvalid, ModelUnknown."""
    request = _check(options, settings)
    with tempfile.TemporaryDirectory(prefix="nightmill-") as scratch:
        return make_plan(_task(request, Path(scratch) / "plan.parquet"), progress)


def submit(
    options: SubmitOptions, repository: Repository, settings: Settings, progress: Progress = silent
) -> Submitted:
    """Raises InputInvalid, ModelUnknown, OutputConflict, JobConflict, DatabaseDown, and Fenced when the job was
    cancelled or taken over during planning."""
    request = _check(options, settings)
    job, is_new = _find_or_create(request, repository)
    _refuse_other(job, request)
    while job.state == JobState.VALIDATING:
        epoch = repository.claim_job(job.id, _me(), settings.lease_seconds)
        if epoch is not None:
            plan, job = _plan(job, epoch, request, repository, progress)
            return Submitted(job=job, how="new" if is_new else "resumed", plan=plan)
        # Another process plans it, or was killed at it: then its lease runs out.
        progress("wait", 0, 0)
        time.sleep(min(1.0, settings.heartbeat_seconds))
        job = repository.get_job(job.id)
    return Submitted(job=job, how=_how(job, repository, settings), plan=None)


def _check(options: SubmitOptions, settings: Settings) -> _Request:
    inputs = open_input(options.inputs)
    columns = choose_columns(inputs.schema, options)
    model = resolve_model(options.model, options.model_revision, settings.home, dtype=settings.dtype)
    encoder = PromptEncoder.open(model.path)
    try:
        check_overrides(options.sampling.as_spec(), encoder.vocab_size)
    except SamplingInvalid as error:
        raise InputInvalid("invalid_option", f"the job's sampling options do not fit the model: {error}") from error
    spec = options.spec(model.ref.key) | {
        "tokenizer_sha256": encoder.tokenizer_sha256,
        "chat_template_sha256": encoder.template_sha256,
    }
    spec_hash = hash_spec(spec)
    job_seed = derive_seed(spec_hash, inputs.fingerprint) if options.seed is None else options.seed
    rows = RowEncoder(
        encoder,
        columns,
        sampling=options.sampling,
        job_seed=job_seed,
        system_prompt=options.system_prompt,
        raw_prompt=options.raw_prompt,
        on_too_long=options.on_too_long,
    )
    return _Request(
        options=options,
        settings=settings,
        out=Path(os.path.abspath(options.output)),
        model=model,
        inputs=inputs,
        columns=columns,
        rows=rows,
        spec=spec,
        job_seed=job_seed,
        spec_hash=spec_hash,
    )


def _find_or_create(request: _Request, repository: Repository) -> tuple[Job, bool]:
    """The job of this output directory; True if it was made now."""
    found = repository.find_job(output_uri=str(request.out))
    if found is not None and _is_void(found, request.out):
        repository.retire_job(found.id)
        drop_output(request.out, Owner(run_key=found.run_key, spec_hash=found.spec_hash))
        found = None
    resume = request.options.resume
    if found is not None and resume == "never":
        raise JobConflict(
            f"{request.out} belongs to job {found.id} ({found.state}) and --resume never was given; "
            "name another output directory"
        )
    if found is not None:
        return found, False
    if resume == "always":
        raise JobConflict(f"no job has the output directory {request.out}, so there is nothing to resume")
    if (request.out / layout.MANIFEST).exists():
        raise OutputConflict(
            f"{request.out} holds the results of a job that this database does not know; name another output directory"
        )
    taken = take_output(request.out, request.owner)
    try:
        return repository.create_job(_new_job(request)), True
    except JobConflict:
        # The same command, at the same moment: whoever came first has it.
        found = repository.find_job(output_uri=str(request.out))
        if found is None:
            raise
        return found, False
    except BaseException:
        if taken:
            drop_output(request.out, request.owner)
        raise


def _is_void(job: Job, out: Path) -> bool:
    """Did the job end without a plan, or were its results removed? Then its directory is free.

    Raises JobConflict when the directory of an open job was removed.
    """
    if job.plan is None:
        return job.state in JOB_FINAL
    if read_owner(out) is not None:
        return False
    if job.state not in JOB_FINAL:
        raise JobConflict(
            f"the output directory {out} of job {job.id} ({job.state}) was removed, and its plan with it; "
            f"run `nightmill cancel {job.id}`, then submit again"
        )
    return True


def _new_job(request: _Request) -> NewJob:
    options = request.options
    return NewJob(
        run_key=request.run_key,
        name=options.name or request.out.name,
        model=request.model.ref,
        input_uri=os.pathsep.join(os.path.abspath(path) for path in options.inputs),
        input_fingerprint=request.inputs.fingerprint,
        output_uri=str(request.out),
        spec=request.spec | {"job_seed": request.job_seed},  # recorded; it follows from specification and input
        spec_hash=request.spec_hash,
        max_shard_attempts=request.settings.max_shard_attempts,
        tags=dict(options.tags),
    )


def _refuse_other(job: Job, request: _Request) -> None:
    """Raises InputInvalid (`changed`) or JobConflict when the job is not this submission's."""
    if job.spec_hash != request.spec_hash:
        changes = "; ".join(changed_keys(job.spec, request.spec))
        raise JobConflict(
            f"{job.output_uri} belongs to job {job.id}, which was submitted with other options ({changes}); "
            "submit with the old options to resume it, or name another output directory"
        )
    if job.input_fingerprint != request.inputs.fingerprint:
        raise InputInvalid(
            "changed",
            f"the input {job.input_uri} has changed since job {job.id} was submitted, so it cannot be resumed; "
            "restore the input, or submit with another output directory",
        )


def _plan(job: Job, epoch: int, request: _Request, repository: Repository, progress: Progress) -> tuple[Plan, Job]:
    """Plan and queue under the epoch. A failure ends the job and gives OUT back, unless somebody else took it over."""
    try:
        take_output(request.out, request.owner)
        sweep(request.out)  # what an interrupted planning left
        # Written under the epoch's own name: a planner that lost its lease does not reach the plan of the next.
        draft = request.out / layout.PLAN.replace(".parquet", f".e{epoch}.parquet")
        renew = partial(repository.renew_job, job.id, epoch, request.settings.lease_seconds)
        watched = _both(_renewing(renew, request.settings.heartbeat_seconds), progress)
        plan = make_plan(_task(request, draft), watched)
        if open_input(request.options.inputs).fingerprint != request.inputs.fingerprint:
            raise InputInvalid("changed", "the input was changed while it was read; submit again when it is complete")
        renew()
        move(draft, request.out / layout.PLAN)
        sync_folder(draft.parent)
        return plan, repository.queue_job(job.id, epoch, plan.record, plan.shards)
    except BaseException as error:
        with suppress(StorageError):  # the first error is the one to tell
            _withdraw(job, epoch, request, repository, str(error) or type(error).__name__)
        raise


def _withdraw(job: Job, epoch: int, request: _Request, repository: Repository, why: str) -> None:
    try:
        repository.fail_job(job.id, epoch, why)
    except Fenced:
        now = repository.get_job(job.id)
        if now.state not in JOB_FINAL or now.plan is not None:
            return  # another process took it over; OUT is its own
    repository.retire_job(job.id)
    drop_output(request.out, request.owner)


def _task(request: _Request, path: Path) -> PlanTask:
    options, settings = request.options, request.settings
    # Half a batch target: smaller shards would be claimed and committed more often than they keep a batch full.
    min_rows = max(1, settings.max_sequences // 2)
    return PlanTask(
        inputs=request.inputs,
        columns=request.columns,
        rows=request.rows,
        path=path,
        key=layout.PLAN,
        scratch=path.parent,
        limit=options.limit,
        order=options.order,
        cut=CutLimits(
            budget_tokens=options.shard_tokens, min_rows=min_rows, max_rows=max(options.shard_rows, min_rows)
        ),
        block_size=settings.block_size,
    )


def _how(job: Job, repository: Repository, settings: Settings) -> How:
    if job.state in JOB_FINAL:
        return "attached"
    live = repository.workers(settings.worker_stale_seconds)
    return "attached" if any(worker.model_key == job.model.key for worker in live) else "resumed"


def _me() -> str:
    return f"submit-{os.getpid()}@{socket.gethostname()}"


def _renewing(renew: Callable[[], None], every_seconds: float) -> Progress:
    """Progress that keeps the right to plan."""
    last = time.monotonic()

    def tick(stage: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= every_seconds:
            renew()
            last = time.monotonic()

    return tick


def _both(first: Progress, second: Progress) -> Progress:
    def call(stage: str, done: int, total: int) -> None:
        first(stage, done, total)
        second(stage, done, total)

    return call
