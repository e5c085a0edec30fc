"""Settle a run whose job has ended: gates, then the pointer, the card, retention and the webhook.

    verdict-0001.json -> current.json -> README.md -> old run folders -> webhook

Each step finds out what an earlier call has done, so a call that was killed anywhere is simply made again.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from jobs.datasets.gates import GateResult
from jobs.datasets.judging import decision, why_not_whole
from jobs.datasets.terms import DatasetTerms
from jobs.datasets.webhook import Event, send
from jobs.settings import Settings
from storage import failpoints, layout
from storage.dataset.card import card_bytes
from storage.dataset.retention import Retention
from storage.dataset.store import DatasetStore
from storage.dataset.verdicts import Verdict
from storage.durable import create_exclusive
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
        return _unpublished(job, run_label, run_id, dataset, terms, settings, str(error))
    if os.path.realpath(job.output_uri) != os.path.realpath(out):
        raise ValueError(f"job {job.id} wrote to {job.output_uri}, so it is not the run {out}")
    if not job.published_generation:
        return _unpublished(job, run_label, run_id, dataset, terms, settings, f"job {job.id} is {job.state.value}")
    try:
        decide = decision(job, run_label, run_id, store, terms, settings, now())
        verdict = store.settle(run_label, run_id, job.published_generation, decide, now())
    except FileDamaged as error:
        if may_pass(error.__cause__):
            raise FileUnreadable(str(error)) from error
        return _unpublished(job, run_label, run_id, dataset, terms, settings, str(error))
    try:
        store.write_card(partial(card_bytes, os.path.basename(os.path.abspath(dataset))))
        if terms.keep_runs is not None or terms.keep_days is not None:
            store.retain(_retention(terms), now())
        _tell(verdict, out, dataset, terms, settings)
    except Exception:  # whatever it is: the verdict stands, and a run that readers have is not to be called failed
        log.exception("card, retention or webhook failed after the verdict dataset=%s label=%s", dataset, run_label)
    gates = tuple(GateResult.from_dict(gate) for gate in verdict.gates)
    return Settled(published=verdict.accepted, gates=gates, reason=verdict.reason)


def _retention(terms: DatasetTerms) -> Retention:
    return Retention(
        keep_runs=terms.keep_runs,
        keep_days=terms.keep_days,
        keep_failed=timedelta(days=terms.keep_failed_days),
        grace=timedelta(hours=terms.grace_hours),
    )


def _unpublished(
    job: Job, label: str, run: str, dataset: Path, terms: DatasetTerms, settings: Settings, reason: str
) -> Settled:
    """Nothing to judge: there are no results, or they cannot be read. Told again if it is settled again."""
    if job.error and not job.published_generation:
        reason = why_not_whole(job)
    body = {"dataset": str(dataset), "label": label, "run": run, "job": int(job.id), "reason": reason}
    send(terms, "failure", body, settings=settings)
    return Settled(published=False, gates=(), reason=reason)


def _tell(verdict: Verdict, out: Path, dataset: Path, terms: DatasetTerms, settings: Settings) -> None:
    """The webhook, unless it has taken this before: a mark beside the verdict says so."""
    mark = out / f"{layout.META}/webhook-{verdict.generation:04d}.json"
    if terms.webhook_url is None or mark.exists():
        return
    body: dict[str, Any] = {
        "dataset": str(dataset),
        "label": verdict.label,
        "run": verdict.run,
        "job": verdict.job,
        "rows": verdict.rows,
        "succeeded": verdict.succeeded,
        "reason": verdict.reason,
        "gates": list(verdict.gates),
        "judged_at": verdict.at.isoformat(),
    }
    event: Event = "success" if verdict.accepted else "failure"
    if send(terms, event, body, settings=settings):
        failpoints.reach("settle.after_webhook")
        create_exclusive(mark, (json.dumps({"event": event}) + "\n").encode())
