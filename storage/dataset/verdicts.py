"""The verdict on a run: whether its data set takes it in. Kept in the run's folder, written once, never changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from storage.dataset import names
from storage.dataset.links import first_link
from storage.durable import read_bytes
from storage.errors import FileDamaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """On one published generation of a run's job. `gates` are as the caller made them, JSON-ready."""

    label: str
    run: str
    job: int
    generation: int
    manifest_sha256: str
    accepted: bool
    reason: str
    gates: tuple[Mapping[str, Any], ...]
    rows: int
    succeeded: int
    at: datetime
    order: int = 0  # among the verdicts of the label, from 1; 0: not recorded yet

    def as_bytes(self) -> bytes:
        fields = asdict(self) | {"at": self.at.isoformat()}
        return (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True, slots=True)
class DamagedVerdict:
    """The newest verdict on a run, of which nothing can be known: neither its order nor whether it was accepted."""

    label: str
    run: str
    why: str


def read_verdict(folder: Path, generation: int) -> Verdict | None:
    """The recorded verdict on this generation of the run in `folder`. Raises FileDamaged, FileUnreadable."""
    return _read(folder, folder / names.verdict(generation))


def verdicts(dataset: Path, label: str = "*") -> Iterator[Verdict | DamagedVerdict]:
    """The newest on each run of the label, or of all, in the order of labels and runs; what is behind a link is
    none. Raises FileUnreadable."""
    for folder in sorted((dataset / names.RUNS).glob(f"{label}/*")):
        if first_link(dataset, folder.parent.name, folder.name) is not None:
            continue
        found = sorted(folder.glob(names.verdict(0).replace("0000", "[0-9]" * 4)))
        try:
            verdict = _read(folder, found[-1]) if found else None
        except FileDamaged as error:
            yield DamagedVerdict(folder.parent.name, folder.name, str(error))
            continue
        if verdict is not None:
            yield verdict


def _read(folder: Path, path: Path) -> Verdict | None:
    try:
        content = read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        return None  # none yet, or its run folder was removed this moment
    try:
        fields = json.loads(content)
        verdict = Verdict(**{**fields, "at": datetime.fromisoformat(fields["at"]), "gates": tuple(fields["gates"])})
        _check(verdict, folder)
        return verdict
    except (ValueError, KeyError, TypeError) as error:
        raise FileDamaged(f"{path} cannot be read: {error}") from error


def _check(verdict: Verdict, folder: Path) -> None:
    """Raises ValueError."""
    if (verdict.label, verdict.run) != (folder.parent.name, folder.name):
        raise ValueError(f"it is of run {verdict.label}/{verdict.run}")
    counts = (verdict.order, verdict.generation, verdict.rows, verdict.succeeded, verdict.job)
    if not all(isinstance(each, int) for each in counts) or not isinstance(verdict.accepted, bool):
        raise ValueError("it holds text where a number is meant")
    if verdict.at.tzinfo is None:
        raise ValueError("it was made at no known time")
