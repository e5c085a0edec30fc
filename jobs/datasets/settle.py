"""Settle a run whose job has ended: gates, then the pointer, the card and retention.

    verdict-0001.json -> current.json -> README.md -> old run folders

Each step finds out what an earlier call has done, so a call that was killed anywhere is simply made again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from jobs.datasets.gates import GateResult
from jobs.datasets.judging import decision, why_not_whole
from jobs.datasets.terms import DatasetTerms
from jobs.settings import Settings
from storage.dataset.card import card_bytes
from storage.dataset.retention import Retention
from storage.dataset.store import DatasetStore
from storage.errors import FileDamaged, FileUnreadable, may_pass
from storage.records import Job
from storage.states import JOB_FINAL

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How a run ended for its data set: `published` when the data set has taken it in; `reason` in words."""

    published: bool
    gates: tuple[GateResult, ...]
    reason: str


def utc_now() -> datetime:
    return datetime.now(UTC)


def settle_run(
    job: Job,
    run_label: str,
    run_id: str,
    dataset: Path,
    terms: DatasetTerms,
    *,
    settings: Settings | None = None,
    now: Callable[[], datetime] = utc_now,
) -> Settled:
    """Take the run into the data set if its gates pass. Idempotent: may be repeated after a crash at any point, and
    by two processes at once. The first verdict on a generation of the job's output stands; rows that ran again make a
    new one, so that a refused run may be settled once more.

    Raises ValueError for a job that has not ended or wrote elsewhere; DatasetBusy, FileUnreadable and OSError (also for
    a check that died), after which it can be tried again.
    """
    settings = Settings() if settings is None else settings
    store = DatasetStore(dataset)
    if job.state not in JOB_FINAL:
        raise ValueError(f"job {job.id} is {job.state.value}; its run is settled when it has ended")
    try:
        out = store.run_folder(run_label, run_id)
    except FileDamaged as error:
        return _unpublished(job, str(error))
    if os.path.realpath(job.output_uri) != os.path.realpath(out):
        raise ValueError(f"job {job.id} wrote to {job.output_uri}, so it is not the run {out}")
    if not job.published_generation:
        return _unpublished(job, f"job {job.id} is {job.state.value}")
    try:
        decide = decision(job, run_label, run_id, store, terms, settings, now())
        verdict = store.settle(run_label, run_id, job.published_generation, decide, now())
    except FileDamaged as error:
        if may_pass(error.__cause__):
            raise FileUnreadable(str(error)) from error
        return _unpublished(job, str(error))
    try:
        store.write_card(partial(card_bytes, os.path.basename(os.path.abspath(dataset))))
        if terms.keep_runs is not None or terms.keep_days is not None:
            store.retain(_retention(terms), now())
    except Exception:  # whatever it is: the verdict stands, and a run that readers have is not to be called failed
        log.exception("card or retention failed after the verdict dataset=%s label=%s", dataset, run_label)
    gates = tuple(GateResult.from_dict(gate) for gate in verdict.gates)
    return Settled(published=verdict.accepted, gates=gates, reason=verdict.reason)


def _retention(terms: DatasetTerms) -> Retention:
    return Retention(
        keep_runs=terms.keep_runs,
        keep_days=terms.keep_days,
        keep_failed=timedelta(days=terms.keep_failed_days),
        grace=timedelta(hours=terms.grace_hours),
    )


def _unpublished(job: Job, reason: str) -> Settled:
    """Nothing to judge: there are no results, or they cannot be read."""
    if job.error and not job.published_generation:
        reason = why_not_whole(job)
    return Settled(published=False, gates=(), reason=reason)
