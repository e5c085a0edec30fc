"""The verdict on a run: whether its data set takes it in. Kept in the run's folder, written once, never changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from storage.dataset import names
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


def read_verdict(folder: Path, generation: int) -> Verdict | None:
    """The recorded verdict on this generation of the run in `folder`. Raises FileDamaged."""
    path = folder / names.verdict(generation)
    return _read(path)


def verdicts(dataset: Path, label: str = "*") -> Iterator[Verdict]:
    """The newest verdict on each run of the label, or of all, in the order of labels and runs. Raises FileDamaged."""
    for folder in sorted((dataset / names.RUNS).glob(f"{label}/*")):
        found = sorted(folder.glob(names.verdict(0).replace("0000", "*")))
        verdict = _read(found[-1]) if found else None
        if verdict is not None:
            yield verdict


def _read(path: Path) -> Verdict | None:
    try:
        fields = json.loads(path.read_bytes())
        at, gates = datetime.fromisoformat(fields["at"]), tuple(fields["gates"])
        return Verdict(**{**fields, "at": at, "gates": gates})
    except (FileNotFoundError, NotADirectoryError):
        return None  # none yet, or its run folder was removed this moment
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileDamaged(f"{path} cannot be read: {error}") from error
