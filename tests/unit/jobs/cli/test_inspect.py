"""What `nightmill stats` prints on a terminal."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import client, place, report
from jobs.cli import inspect, terminal
from jobs.exits import UsageError
from storage.records import PlanRecord, RunStats
from tests.unit.jobs.conftest import MakeJob
from tests.unit.storage.dataset.samples import take_night

PLAN = PlanRecord(
    path="p", sha256="s", num_rows=100, prompt_tokens=5000, predicted_cached_tokens=3000, lower_bound_tokens=1600
)


@pytest.fixture
def on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "is_terminal", lambda: True)
    monkeypatch.setattr(place, "find", lambda: SimpleNamespace(repository=lambda: nullcontext(None)))


def lines(text: str) -> list[list[str]]:
    """The cells of each row of the tables."""
    return [[cell.strip() for cell in line.strip("│ ").split("│")] for line in text.splitlines() if "│" in line]


@pytest.mark.usefixtures("on_a_terminal")
def test_the_table_holds_planned_against_cached_and_each_limit_the_largest_first(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = (("block size", 600), ("evicted", 1400))
    stats = RunStats(
        prompt_tokens=5000, planned_tokens=3400, cached_tokens=3000, computed_tokens=2000, limited_by=limits
    )
    told = report.statistics(make_job(plan=PLAN, rows_succeeded=100), stats)
    monkeypatch.setattr(client, "stats", lambda repository, job, generation: told)

    inspect.stats(7)

    rows = lines(capsys.readouterr().out)
    assert [row for row in rows if row[0] in ("planned_cached_tokens", "cached_tokens")] == [
        ["planned_cached_tokens", "3,400"],
        ["cached_tokens", "3,000"],
    ]
    assert ["lower_bound_tokens", "1,600"] in rows
    assert ["computed_over_bound", "1.250"] in rows
    assert rows[-2:] == [["evicted", "1,400"], ["block size", "600"]]


@pytest.mark.usefixtures("on_a_terminal")
def test_nothing_that_limited_is_no_table(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(client, "stats", lambda repository, job, generation: report.statistics(make_job(), RunStats()))

    inspect.stats(7)

    shown = capsys.readouterr().out
    assert "limited by" not in shown
    assert ["computed_over_bound", "-"] in lines(shown)


@pytest.mark.parametrize(("job", "dataset"), [(None, None), (7, Path("stories"))])
def test_results_are_those_of_a_job_or_of_a_data_set(job: int | None, dataset: Path | None) -> None:
    with pytest.raises(UsageError, match="either a job, by its id, or a data set"):
        inspect.results(job, dataset)


@pytest.mark.usefixtures("on_a_terminal")
def test_the_table_of_a_data_set_begins_with_the_label_of_each_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    take_night(tmp_path, "2026-11-23", rows=2)

    inspect.results(dataset=tmp_path, limit=1)

    (row,) = lines(capsys.readouterr().out)  # a narrow terminal cuts the cells
    assert row[0].startswith("2026-")
    assert row[1] == "0"
