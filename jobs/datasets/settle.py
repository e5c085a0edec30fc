"""Settle a run whose job has ended: gates, then the pointer, the card, retention and the webhook."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jobs.datasets.gates import GateResult
from jobs.datasets.terms import DatasetTerms
from storage.records import Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """How a run ended for its data set: `published` when the data set has taken it in; `reason` in words."""

    published: bool
    gates: tuple[GateResult, ...]
    reason: str


def settle_run(job: Job, run_label: str, run_id: str, dataset: Path, terms: DatasetTerms) -> Settled:
    """Take the run into the data set if its gates pass. Idempotent: may be repeated after a crash at any point, and
    by two processes at once; the first verdict stands."""
    raise NotImplementedError
