"""Settle a run whose job has ended: gates, then the pointer, the card and retention.

    verdict-0001.json -> current.json -> README.md -> old run folders

Each step finds out what an earlier call has done, so a call that was killed anywhere is simply made again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from jobs.datasets.gates import GateResult, columns, evaluate
from jobs.datasets.terms import DatasetTerms
from jobs.settings import Settings
from storage.dataset.card import card_bytes
from storage.dataset.current import Current
from storage.dataset.reading import current_files
from storage.dataset.retention import Retention
from storage.dataset.store import DatasetStore
from storage.dataset.verdicts import Verdict, read_verdict
from storage.errors import FileDamaged
from storage.parquet.generations import Generation, listed_file
from storage.records import Job
from storage.states import JOB_FINAL, JobState, RowStatus

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

    Raises ValueError for a job that has not ended or wrote elsewhere, DatasetBusy and OSError, after which it can be
    tried again.
    """
    settings = Settings() if settings is None else settings
    store = DatasetStore(dataset)
    out = store.run_folder(run_label, run_id)
    if job.state not in JOB_FINAL:
        raise ValueError(f"job {job.id} is {job.state.value}; its run is settled when it has ended")
    if os.path.realpath(job.output_uri) != os.path.realpath(out):
        raise ValueError(f"job {job.id} wrote to {job.output_uri}, so it is not the run {out}")
    if not job.published_generation:
        return _unpublished(job, f"job {job.id} is {job.state.value}")
    try:
        recorded = read_verdict(out, job.published_generation)
        if recorded is None:
            decide = _decision(job, run_label, run_id, store, terms, settings, now())
        else:
            decide = partial(_as_recorded, recorded)
        verdict = store.settle(decide, now())
    except FileDamaged as error:
        return _unpublished(job, str(error))
    try:
        store.write_card(partial(card_bytes, dataset.resolve().name))
        if terms.keep_runs is not None or terms.keep_days is not None:
            store.retain(_retention(terms), now())
    except Exception:  # whatever it is: the verdict stands, and a run that readers have is not to be called failed
        log.exception("card or retention failed after the verdict dataset=%s label=%s", dataset, run_label)
    gates = tuple(GateResult.from_dict(gate) for gate in verdict.gates)
    return Settled(published=verdict.accepted, gates=gates, reason=verdict.reason)


def _decision(
    job: Job, label: str, run: str, store: DatasetStore, terms: DatasetTerms, settings: Settings, at: datetime
) -> Callable[[Current], Verdict]:
    """Measure the run; what is returned decides beside which other runs it comes to stand. Raises FileDamaged."""
    out = store.run_folder(label, run)
    published = Generation.load(out, job.published_generation, job.manifest_sha256)
    files = [listed_file(out, published.number, part["path"]) for part in published.manifest["parts"]]
    is_whole = job.state is JobState.COMPLETED
    measured = evaluate(files, terms, settings.allowed_checks) if is_whole else ()

    def decide(current: Current) -> Verdict:
        others = replace(current, runs=tuple(run for run in current.runs if run.label != label))
        beside = {str(file.label): file.path for file in current_files(store.folder, others)}
        gates = (columns(files[0], beside), *measured) if is_whole else ()
        failed = [gate for gate in gates if not gate.passed]
        reason = "; ".join(f"{gate.name}: {gate.why}" for gate in failed) or "all gates passed"
        assert job.manifest_sha256 is not None, f"job {job.id} has published something"
        return Verdict(
            label=label,
            run=run,
            job=int(job.id),
            generation=published.number,
            manifest_sha256=job.manifest_sha256,
            accepted=is_whole and not failed,
            reason=reason if is_whole else _why_not_whole(job),
            gates=tuple(gate.as_dict() for gate in gates),
            rows=published.manifest["rows"],
            succeeded=published.manifest["counts"][RowStatus.SUCCEEDED],
            at=at,
        )

    return decide


def _as_recorded(verdict: Verdict, current: Current) -> Verdict:
    """The first verdict stands, whatever is current now."""
    return verdict


def _why_not_whole(job: Job) -> str:
    return f"job {job.id} is {job.state.value}" + (f": {job.error}" if job.error else "")


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
        reason = _why_not_whole(job)
    return Settled(published=False, gates=(), reason=reason)
