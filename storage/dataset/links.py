"""No link below a data set: it would lead out of it, or from one run into another."""

from __future__ import annotations

from pathlib import Path

from storage.dataset import names
from storage.errors import FileDamaged


def first_link(dataset: Path, label: str, run: str) -> Path | None:
    """The first step from the data set to the run that is a link. The data set itself may be one."""
    runs = dataset / names.RUNS
    return next((step for step in (runs, runs / label, runs / label / run) if step.is_symlink()), None)


def refuse_links(dataset: Path, label: str, run: str) -> None:
    """Raise FileDamaged."""
    link = first_link(dataset, label, run)
    if link is not None:
        raise FileDamaged(f"{link} is a link; only the folder of the data set itself may be one")
