"""Run rows of a published job again: choose them, plan them anew, and queue them as the job's next generation.

Nothing of the job changes before the last step, which is one transaction: whoever is killed or is too late leaves a
file in the work folder of the generation, which is swept with it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from jobs.planning import Plan, Progress, make_plan
from jobs.sampling import SamplingInvalid, check_overrides
from jobs.settings import Settings
from jobs.submission import submission_of
from storage import layout
from storage.dataset import names
from storage.durable import inside
from storage.errors import InputInvalid, JobConflict
from storage.output import Owner, read_owner
from storage.parquet.chosen import read_chosen
from storage.parquet.generations import Generation
from storage.parquet.reader import open_input
from storage.records import Job, JobId, NewGeneration
from storage.repository import Repository
from storage.states import JOB_FINAL, RowStatus

RETRIED = (RowStatus.ERRORED, RowStatus.EXPIRED, RowStatus.CANCELED)
"""The statuses by which rows can be chosen; succeeded ones by their finish reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Rows with one of these statuses or finish reasons, and the sampling options that they run with this time."""

    statuses: frozenset[str] = frozenset()
    finish_reasons: frozenset[str] = frozenset()
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Raises ValueError for a value that cannot be honoured."""
        if not self.statuses and not self.finish_reasons:
            raise ValueError("no row is chosen; give --status, --finish-reason or both")
        wrong = sorted(self.statuses.difference(RETRIED))
        if wrong:
            raise ValueError(f"--status is {wrong[0]!r}; it must be one of {', '.join(RETRIED)}")
        if "n" in self.options:
            raise ValueError("--set n cannot be honoured: a row that runs again keeps its number of samples")


@dataclass(frozen=True, slots=True)
class Retried:
    """The job as it is now. `plan` is None when no row was chosen; then nothing has changed."""

    job: Job
    plan: Plan | None


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE as sampling options; a value is JSON, or else text. Raises SamplingInvalid."""
    given: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise SamplingInvalid(f"--set is {pair!r}; write it as NAME=VALUE")
        try:
            given[name] = json.loads(value)
        except ValueError:
            given[name] = value
    return check_overrides(given)


def retry(job_id: JobId, choice: Choice, repository: Repository, settings: Settings, progress: Progress) -> Retried:
    """Raises NoSuchJob, JobConflict, InputInvalid (also when the input has changed), ModelUnknown, FileDamaged."""
    job = repository.get_job(job_id)
    _check(job, repository)
    out = Path(job.output_uri)
    published = Generation.load(out, job.published_generation, job.manifest_sha256)
    published.verify()
    selected = published.select(choice.statuses, choice.finish_reasons)
    if not len(selected.rows):
        return Retried(job, None)

    submission = submission_of(job, settings, choice.options)
    number = job.generation + 1
    key = layout.plan(number, f"plan-{uuid.uuid4().hex[:8]}")  # of this command alone: two may be at it
    path = inside(out, key)
    try:
        chosen = None if submission.options.only_new is None else read_chosen(out / layout.INPUT_ROWS)
        plan = make_plan(submission.plan_task(path, key, chosen=chosen, only=selected.rows), progress)
        if open_input(submission.options.inputs).fingerprint != job.input_fingerprint:
            raise InputInvalid("changed", f"the input {job.input_uri} was changed while it was read")
        new = NewGeneration(number=number, plan=plan.record, shards=plan.shards, kept=selected.kept)
        return Retried(repository.retry_job(job.id, new), plan)
    except (JobConflict, InputInvalid):
        path.unlink(missing_ok=True)
        raise


def _check(job: Job, repository: Repository) -> None:
    """Raise JobConflict unless the job has ended with results that are still its own."""
    if job.state not in JOB_FINAL:
        raise JobConflict(f"job {job.id} is {job.state}; only the rows of a job that has ended can run again")
    label = names.label_of_run(PurePath(job.output_uri))
    if label is not None:
        raise JobConflict(_of_a_run(job, label))
    if not job.published_generation:
        raise JobConflict(f"job {job.id} is {job.state} and has no published results; submit it again")
    holder = repository.find_job(output_uri=job.output_uri)
    ours = read_owner(Path(job.output_uri)) == Owner(run_key=job.run_key, spec_hash=job.spec_hash)
    if holder is None or holder.id != job.id or not ours:
        raise JobConflict(f"the results of job {job.id} are no longer in {job.output_uri}; submit it again")
    if not job.options:
        raise JobConflict(
            f"job {job.id} was submitted by an older version, which kept no options; submit {job.output_uri}"
            f"/{layout.ERRORS} as a job of its own"
        )


def _of_a_run(job: Job, label: str) -> str:
    """Readers of the data set follow its files, also those of an earlier attempt: they would see rows that no gate has
    judged, and rows that another run has made since."""
    schedule = job.tags.get("schedule")
    again = (
        "submit them into another run folder"
        if schedule is None
        else f"`nightmill schedule run {schedule} --date {label} --again` makes that date again, and readers keep what"
        " they have until its gates have passed"
    )
    return f"job {job.id} made the run {label} of a data set, whose rows do not run again in place; {again}"
