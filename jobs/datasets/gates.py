"""Quality gates: what is measured of a published run before its data set takes it in.

A run without rows passes every bound, since there is nothing of which a share or a mean could be wrong.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from jobs.datasets.observed import Observed, observe
from jobs.datasets.terms import DatasetTerms
from storage.dataset.names import LABEL_COLUMN
from storage.parquet.sealed import open_sealed

SHOWN = 500  # characters of what a check says


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One gate: what was observed and what was wanted, and in words why it did not pass (else empty)."""

    name: str
    passed: bool
    observed: float | None
    wanted: str
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> GateResult:
        return GateResult(**fields)


def evaluate(files: Sequence[Path], terms: DatasetTerms, allowed: Set[str]) -> tuple[GateResult, ...]:
    """Every gate of the terms over the data parts of a run, also behind one that did not pass. `allowed`: the checks
    that the settings let us call. Raises FileDamaged."""
    observed = observe(files, count_repeats=terms.max_duplicate_share is not None)
    return (*bounds(observed, terms), *(call_check(check, files, allowed) for check in terms.checks))


def bounds(observed: Observed, terms: DatasetTerms) -> Iterator[GateResult]:
    """The gates that compare one number. Pure."""
    done = observed.succeeded
    tokens, characters = _share(observed.tokens, done), _share(observed.characters, done)
    found = (
        ("min_success_rate", _share(done, observed.rows), "of all rows succeeded"),
        ("min_mean_tokens", tokens, "tokens in the mean of succeeded rows"),
        ("max_mean_tokens", tokens, "tokens in the mean of succeeded rows"),
        ("min_mean_characters", characters, "characters in the mean of succeeded rows"),
        ("max_mean_characters", characters, "characters in the mean of succeeded rows"),
        ("max_cut_share", _share(observed.cut, done), "of the succeeded rows were cut at max_tokens"),
        ("max_duplicate_share", _share(observed.repeated or 0, done), "of the succeeded rows repeat an earlier text"),
    )
    for name, value, what in found:
        bound = getattr(terms, name)
        if bound is None:
            continue
        at_least = name.startswith("min_")
        passed = value is None or (value >= bound if at_least else value <= bound)
        wanted = f"{'at least' if at_least else 'at most'} {bound:g}"
        why = "" if passed else f"{value:g} {what}, wanted {wanted}"
        yield GateResult(name=name, passed=passed, observed=value, wanted=wanted, why=why)


def call_check(check: str, files: Sequence[Path], allowed: Set[str]) -> GateResult:
    """Call a function of the user's with the run as a pyarrow Dataset. It passes with None or True; False, a text that
    says why, or any exception is a gate that did not pass."""
    why = _why_not(check, files, allowed)
    return GateResult(name=check, passed=not why, observed=None, wanted="passes", why=why[:SHOWN])


def _why_not(check: str, files: Sequence[Path], allowed: Set[str]) -> str:
    if check not in allowed:
        return f"NIGHTMILL_DATASET_CHECKS does not allow {check}; add it where runs are settled"
    module, _, name = check.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)(
            ds.dataset([str(file) for file in files], format="parquet")
        )
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a user's function does, the night is judged
        return f"{check} raised {type(error).__name__}: {error}"
    if found is None or found is True:
        return ""
    return found if isinstance(found, str) and found else f"{check} returned {found!r}"


def columns(file: Path, beside: Mapping[str, Path]) -> GateResult:
    """All current runs are read as one table, so a column has one type in all of them. `beside`: a part of each other
    run, by label. Raises FileDamaged."""
    schema = _schema(file)
    name, wanted = "columns", "the types of the other current runs"
    if LABEL_COLUMN in schema.names:
        why = f"the column {LABEL_COLUMN} is the run's label in a data set; rename it in the input, or do not keep it"
        return GateResult(name=name, passed=False, observed=None, wanted=wanted, why=why)
    types = {field.name: field.type for field in schema}
    for label, other in beside.items():
        for field in _schema(other):
            if types.get(field.name, field.type) != field.type:
                why = f"the column {field.name} is {types[field.name]} here and {field.type} in the run of {label}"
                return GateResult(name=name, passed=False, observed=None, wanted=wanted, why=why)
    return GateResult(name=name, passed=True, observed=None, wanted=wanted)


def _schema(file: Path) -> pa.Schema:
    with open_sealed(file) as part:
        return part.schema_arrow


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
