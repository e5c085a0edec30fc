"""A submission whose input, model and options fit together, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jobs.columns import Columns, choose_columns
from jobs.deadline import Deadline, parse_deadline
from jobs.intake import RowEncoder
from jobs.models import ResolvedModel, model_files, resolve_model
from jobs.onlynew import choose_new, known_keys
from jobs.options import MOST_SHARDS, SHARD_ROWS, SHARD_TOKENS, SubmitOptions, changed_keys, derive_seed, hash_spec
from jobs.planner import CutLimits, Int64s
from jobs.planning import PlanTask, Progress
from jobs.prompts import PromptEncoder
from jobs.sampling import SamplingInvalid, check_overrides
from jobs.settings import Settings
from storage import layout
from storage.dataset.names import label_of
from storage.errors import InputInvalid
from storage.output import Owner
from storage.parquet.reader import InputFiles, open_input
from storage.records import Job, ModelRef, NewJob

WIDTH, LIMIT = "max_sequences", "max_model_len"
"""Beside the frozen options: the batch that shards were made for, and how long a row may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
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
        key = self.options.idempotency_key
        return str(self.out) if key is None else f"key:{key}"  # no path has this form

    @property
    def owner(self) -> Owner:
        return Owner(run_key=self.run_key, spec_hash=self.spec_hash)

    def new_job(self) -> NewJob:
        options = self.options
        deadline = Deadline() if options.deadline is None else parse_deadline(options.deadline)
        return NewJob(
            run_key=self.run_key,
            name=options.name or self.out.name,
            model=self.model.ref,
            input_uri=os.pathsep.join(os.path.abspath(path) for path in options.inputs),
            input_fingerprint=self.inputs.fingerprint,
            output_uri=str(self.out),
            spec=self.spec | {"job_seed": self.job_seed},  # recorded; it follows from specification and input
            spec_hash=self.spec_hash,
            options=self.options.frozen() | {WIDTH: self.settings.max_sequences, LIMIT: self.settings.max_model_len},
            max_shard_attempts=self.settings.max_shard_attempts,
            deadline_seconds=deadline.seconds,
            deadline_at=deadline.at,
            max_error_rate=options.max_error_rate,
            tags=dict(options.tags),
        )

    def new_rows(self, progress: Progress) -> Int64s | None:
        """Which rows of the input are new, if only those are asked for. Raises InputInvalid, FileDamaged."""
        options = self.options
        if options.only_new is None:
            return None
        dataset = Path(os.path.abspath(options.only_new))
        known = known_keys(dataset, made_again=label_of(dataset, self.out))
        return choose_new(self.inputs, self.columns, known, limit=options.limit, progress=progress)

    def plan_task(
        self, path: Path, key: str = layout.PLAN, *, chosen: Int64s | None, only: Int64s | None = None
    ) -> PlanTask:
        """What to plan into the file `path`, `key` in SQL; spill files go beside it. `chosen`: see `new_rows`. `only`:
        these rows of the job."""
        options, settings = self.options, self.settings
        is_sized = bool(options.shard_tokens or options.shard_rows)
        # Half a batch target: smaller shards would be claimed and committed more often than they keep a batch full.
        # Whoever asks for smaller ones gets them.
        min_rows = 1 if is_sized else max(1, settings.max_sequences // 2)
        return PlanTask(
            inputs=self.inputs,
            columns=self.columns,
            rows=self.rows,
            path=path,
            key=key,
            scratch=path.parent,
            limit=options.limit if chosen is None else None,
            order=options.order,
            cut=CutLimits(
                budget_tokens=options.shard_tokens or SHARD_TOKENS,
                min_rows=min_rows,
                max_rows=max(options.shard_rows or SHARD_ROWS, min_rows),
            ),
            most_shards=None if is_sized else MOST_SHARDS,
            chosen=chosen,
            only=only,
        )


def check(
    options: SubmitOptions,
    settings: Settings,
    model_ref: ModelRef | None = None,
    forced: Mapping[str, Any] = MappingProxyType({}),
) -> Submission:
    """Read footers, tokenizer and template, and decide what every column means; writes nothing. `model_ref`: the model
    as SQL names it, if it does already. `forced`: see `RowEncoder`. Raises InputInvalid, ModelUnknown."""
    inputs = open_input(options.inputs)
    columns = choose_columns(inputs.schema, options)
    model = _model(options, settings) if model_ref is None else _known_model(model_ref, settings)
    encoder = PromptEncoder.open(model.path, settings.max_model_len)
    try:
        check_overrides(options.sampling.as_spec(), encoder.vocab_size)
        check_overrides(forced, encoder.vocab_size)
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
        forced=forced,
    )
    return Submission(
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


def _model(options: SubmitOptions, settings: Settings) -> ResolvedModel:
    return resolve_model(
        options.model,
        options.model_revision,
        settings.home,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
    )


def _known_model(ref: ModelRef, settings: Settings) -> ResolvedModel:
    return ResolvedModel(model_files(ref, settings.home), ref)


def submission_of(job: Job, settings: Settings, forced: Mapping[str, Any] = MappingProxyType({})) -> Submission:
    """The submission that a job was made from, out of its record alone. Raises InputInvalid, ModelUnknown."""
    frozen = dict(job.options)
    settings = settings.model_copy(update={WIDTH: frozen.pop(WIDTH), LIMIT: frozen.pop(LIMIT, None)})
    submission = check(SubmitOptions.thawed(frozen), settings, job.model, forced)
    if submission.inputs.fingerprint != job.input_fingerprint:
        raise InputInvalid("changed", f"the input {job.input_uri} has changed since job {job.id} was submitted")
    if submission.spec_hash != job.spec_hash:
        changes = "; ".join(changed_keys(job.spec, submission.spec))
        raise InputInvalid("changed", f"job {job.id} cannot be planned as it was submitted ({changes})")
    return submission
