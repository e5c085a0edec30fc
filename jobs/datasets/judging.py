"""Whether a data set takes a run in: what was measured of it, and beside which other runs it comes to stand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from jobs.datasets.checks import CheckRules
from jobs.datasets.gates import GateResult, columns, evaluate
from jobs.datasets.terms import DatasetTerms
from jobs.settings import Settings
from storage.dataset.current import Current
from storage.dataset.reading import current_files
from storage.dataset.store import DatasetStore
from storage.dataset.verdicts import Verdict, read_verdict
from storage.errors import FileDamaged
from storage.parquet.generations import Generation, listed_file
from storage.records import Job
from storage.states import JobState, RowStatus

log = logging.getLogger(__name__)

Decide = Callable[[Current, Verdict | None], Verdict]


def decision(
    job: Job, label: str, run: str, store: DatasetStore, terms: DatasetTerms, settings: Settings, at: datetime
) -> Decide:
    """Measure the run, unless that was done before a crash; what is returned decides, given what is current and what
    is recorded by then. Raises FileDamaged, FileUnreadable, ChildProcessError."""
    out = store.run_folder(label, run)
    is_whole = job.state is JobState.COMPLETED
    if read_verdict(out, job.published_generation) is not None:
        return lambda current, found: _once_more(_found(found, out), job, store, current)
    published, files = _published(out, job)
    measured = evaluate(files, terms, CheckRules.of(settings, terms)) if is_whole else ()

    def decide(current: Current, found: Verdict | None) -> Verdict:
        if found is not None:  # another process was faster
            return _once_more(found, job, store, current)
        gates = (_fits(files, label, store.folder, current), *measured) if is_whole else ()
        assert job.manifest_sha256 is not None, f"job {job.id} has published something"
        return Verdict(
            label=label,
            run=run,
            job=int(job.id),
            generation=published.number,
            manifest_sha256=job.manifest_sha256,
            accepted=is_whole and all(gate.passed for gate in gates),
            reason=_reason(gates) if is_whole else why_not_whole(job),
            gates=tuple(gate.as_dict() for gate in gates),
            rows=published.manifest["rows"],
            succeeded=published.manifest["counts"][RowStatus.SUCCEEDED],
            at=at,
        )

    return decide


def why_not_whole(job: Job) -> str:
    return f"job {job.id} is {job.state.value}" + (f": {job.error}" if job.error else "")


def _found(found: Verdict | None, out: Path) -> Verdict:
    if found is None:
        raise FileDamaged(f"the verdict on {out} was removed while it was read")
    return found


def _once_more(found: Verdict, job: Job, store: DatasetStore, current: Current) -> Verdict:
    """The first verdict stands, whatever is current now; but a run that a crash has kept from coming in must fit what
    has come in meanwhile."""
    if not found.accepted or current.is_past(found.label, found.order, found.generation):
        return found
    _, files = _published(store.run_folder(found.label, found.run), job)
    gate = _fits(files, found.label, store.folder, current)
    if gate.passed:
        return found
    return replace(found, accepted=False, reason=_reason([gate]), gates=(gate.as_dict(), *found.gates[1:]))


def _published(out: Path, job: Job) -> tuple[Generation, list[Path]]:
    """What the job has published, and its data parts."""
    published = Generation.load(out, job.published_generation, job.manifest_sha256)
    return published, [listed_file(out, published.number, part["path"]) for part in published.manifest["parts"]]


def _fits(files: Sequence[Path], label: str, dataset: Path, current: Current) -> GateResult:
    """The gate that is always there, beside a part of each run of another label."""
    others = replace(current, runs=tuple(run for run in current.runs if run.label != label))
    return columns(files[0], {str(file.label): file.path for file in current_files(dataset, others)})


def _reason(gates: Sequence[GateResult]) -> str:
    return "; ".join(f"{gate.name}: {gate.why}" for gate in gates if not gate.passed) or "all gates passed"
