"""Gates say of a published run what was seen, what was wanted, and why it did not pass."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.datasets.checks import CheckRules
from jobs.datasets.gates import bounds, columns, evaluate
from jobs.datasets.observed import Observed, observe
from jobs.datasets.terms import DatasetTerms


def write(path: Path, texts: list[str | None], **columns: Any) -> Path:
    """A data part; a row without a text failed."""
    rows = {
        "prompt": ["p"] * len(texts),
        "status": pa.array(["errored" if text is None else "succeeded" for text in texts]).dictionary_encode(),
        "finish_reason": pa.array([None if text is None else "stop" for text in texts], pa.string()),
        "completion_tokens": pa.array([None if text is None else len(text) // 2 for text in texts], pa.int32()),
        "output_text": pa.array(texts, pa.large_string()),
        **columns,
    }
    pq.write_table(pa.table(rows), path)
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Two parts of a run with six rows: one failed, one was cut, one repeats a text of the other part."""
    first = write(tmp_path / "0.parquet", ["äbcd", "efgh", None])
    reasons = pa.array(["length", "stop", "stop"])
    return [first, write(tmp_path / "1.parquet", ["efgh", "ij", "sorry!"], finish_reason=reasons)]


def test_a_run_is_seen_as_its_succeeded_rows_over_all_parts(parts: list[Path]) -> None:
    seen = observe(parts, count_repeats=True)

    assert seen == Observed(rows=6, succeeded=5, tokens=2 + 2 + 2 + 1 + 3, characters=20, cut=1, repeated=1)


@pytest.mark.parametrize(
    ("name", "passing", "failing", "observed"),
    [
        ("min_success_rate", 0.8, 0.9, 5 / 6),
        ("min_mean_tokens", 2, 2.5, 2.0),
        ("max_mean_tokens", 2, 1.9, 2.0),
        ("min_mean_characters", 4, 4.1, 4.0),
        ("max_mean_characters", 4, 3.9, 4.0),
        ("max_cut_share", 0.2, 0.1, 0.2),
        ("max_duplicate_share", 0.2, 0.1, 0.2),
    ],
)
def test_each_bound_passes_on_one_side_and_says_why_on_the_other(
    parts: list[Path], name: str, passing: float, failing: float, observed: float
) -> None:
    seen = observe(parts, count_repeats=True)

    (good,) = bounds(seen, DatasetTerms.from_dict({name: passing}))
    (bad,) = bounds(seen, DatasetTerms.from_dict({name: failing}))

    assert (good.name, good.passed, good.observed, good.why) == (name, True, observed, "")
    assert not bad.passed
    assert f"wanted {'at least' if name.startswith('min') else 'at most'} {failing:g}" in bad.why


def test_a_run_without_rows_passes_every_bound(tmp_path: Path) -> None:
    terms = DatasetTerms(min_success_rate=1, min_mean_tokens=5, max_cut_share=0, max_duplicate_share=0)

    results = evaluate([write(tmp_path / "0.parquet", [])], terms, CheckRules(allowed=set(), seconds=60.0))

    assert len(results) == 4
    assert all(result.passed for result in results)


def test_a_run_whose_columns_do_not_fit_the_other_runs_is_refused(tmp_path: Path) -> None:
    before = write(tmp_path / "a.parquet", ["x"], score=[1.5])
    today = write(tmp_path / "b.parquet", ["x"], score=["high"])

    result = columns(today, {"2026-11-26": before})

    assert not result.passed
    assert result.why == "the column score is string here and double in the run of 2026-11-26"


def test_an_input_column_with_the_name_of_the_label_is_refused(tmp_path: Path) -> None:
    today = write(tmp_path / "b.parquet", ["x"], dt=["2026"])

    result = columns(today, {})

    assert not result.passed
    assert "rename it" in result.why


def test_the_memory_of_observing_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    texts: list[str | None] = [f"{row:05d}" * 40 for row in range(8000)]
    write(tmp_path / "0.parquet", texts)
    peaks = []

    for times in (1, 8):
        tracemalloc.start()
        observe([tmp_path / "0.parquet"] * times, count_repeats=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < 1.2 * peaks[0]
