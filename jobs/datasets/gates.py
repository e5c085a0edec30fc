"""Quality gates: what is measured of a published run before its data set takes it in.

A run without rows passes every bound, since there is nothing of which a share or a mean could be wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.datasets.checks import CheckRules, why_not
from jobs.datasets.observed import Observed, observe
from jobs.datasets.terms import DatasetTerms
from storage.dataset.names import check_label_column
from storage.errors import FileDamaged, may_pass
from storage.parquet.sealed import open_sealed

log = logging.getLogger(__name__)


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


def evaluate(files: Sequence[Path], terms: DatasetTerms, rules: CheckRules) -> tuple[GateResult, ...]:
    """Every gate of the terms over the data parts of a run, also behind one that did not pass. Raises FileDamaged, and
    ChildProcessError when a check died."""
    observed = observe(files, count_repeats=terms.max_duplicate_share is not None)
    return (*bounds(observed, terms), *(call_check(check, files, rules) for check in terms.checks))


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


def call_check(check: str, files: Sequence[Path], rules: CheckRules) -> GateResult:
    """Call a function of the user's with the run as a pyarrow Dataset. It passes with None or True; False, a text that
    says why, any exception, or too long a time is a gate that did not pass. Raises ChildProcessError when it died."""
    why = why_not(check, files, rules)
    return GateResult(name=check, passed=not why, observed=None, wanted="passes", why=why)


def columns(file: Path, beside: Mapping[str, Path]) -> GateResult:
    """All current runs are read as one table, so a column has one type in all of them, or none where it holds nothing.
    `beside`: a part of each other run, by label; one that is damaged is no fault of this run. Raises FileDamaged."""
    why = _clash(_schema(file), beside)
    wanted = "the types of the other current runs"
    return GateResult(name="columns", passed=not why, observed=None, wanted=wanted, why=why)


def _clash(schema: pa.Schema, beside: Mapping[str, Path]) -> str:
    try:
        check_label_column(schema.names)
    except ValueError as error:
        return str(error)
    types = {field.name: field.type for field in schema}
    for label, other in beside.items():
        try:
            known = _schema(other)
        except FileDamaged as error:
            if may_pass(error.__cause__):
                raise
            log.warning("the columns of the run of %s are not compared: %s", label, error)
            continue
        for field in known:
            here = types.get(field.name, field.type)
            if here != field.type and pa.null() not in (here, field.type):
                return f"the column {field.name} is {here} here and {field.type} in the run of {label}"
    return ""


def _schema(file: Path) -> pa.Schema:
    with open_sealed(file) as part:
        return part.schema_arrow


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
