"""Names of files below a data set, which is a folder of runs. Pure: no I/O.

DATASET/
  current.json                         which run of each label is current; readers trust only it
  README.md                            the data-set card
  .lock                                held by whoever changes the two above
  _runs/<label>/<run>/                 the output directory of a run's job: data/, manifest.json, _meta/
  _runs/<label>/<run>/_meta/verdict-0001.json   whether the data set took in generation 1 of it, and why
  _removed/                            run folders that nobody needs, while they are being deleted
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

from storage import layout

CURRENT = "current.json"
README = "README.md"
LOCK = ".lock"
RUNS = "_runs"
REMOVED = "_removed"
LABEL_COLUMN = "dt"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def is_name(text: str) -> bool:
    """May a label or a run be called so? It is one step of a path, and nothing that a shell or YAML reads else."""
    return _NAME.fullmatch(text) is not None


def check_label_column(columns: Iterable[str]) -> None:
    """Raise ValueError if a column is called like that of the label. DuckDB knows no case."""
    for name in columns:
        if name.lower() == LABEL_COLUMN:
            raise ValueError(
                f"the column {name} is the run's label in a data set; rename it in the input, or do not keep it"
            )


def run_folder(label: str, run: str) -> str:
    """`_runs/2026-11-27/12`"""
    return f"{RUNS}/{label}/{run}"


def label_of(dataset: PurePath, out: PurePath) -> str | None:
    """The label whose run has its output in `out`; None for a folder that is no run of this data set."""
    runs = dataset / RUNS
    steps = out.relative_to(runs).parts if out.is_relative_to(runs) else ()
    return steps[0] if len(steps) == 2 else None


def label_of_run(out: PurePath) -> str | None:
    """The label of a run folder of any data set; None for what is none."""
    return label_of(out.parents[2], out) if len(out.parents) > 2 else None


def verdict(generation: int) -> str:
    """Relative to the run folder."""
    return f"{layout.META}/verdict-{generation:04d}.json"
