"""Where the rates of a limit come from, and that no limit is told twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ops.bench import limits
from ops.bench.cells import Cell
from ops.bench.limit import Rates
from ops.bench.limits import read_lines
from ops.bench.machine import cpu_model, versions

CELL = Cell(0, "tiny", "no-share", "nightmill", rows=2, new_tokens_per_row=8, threads=1)


def rates(products: dict[int, float], own: float, **changes: Any) -> dict[str, Any]:
    """Of one shape, by rows."""
    here = {"kind": "rates", "cpu": cpu_model(), "versions": versions(), "threads": 1, "models": ["tiny"]}
    lines = [{"inputs": 8, "outputs": 4, "rows": rows, "gflop_s": rate} for rows, rate in products.items()]
    attention = {"tiny": {"own": own, "shared": 2.0, "prefill": 3.0}}
    return here | {"products": lines, "attention": attention, "bandwidth_gb_s": 10.0 / own} | changes


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_each_figure_is_the_best_of_all_rounds() -> None:
    best = limits.best_rates([rates({8: 5.0, 16: 9.0}, 1.0), rates({8: 6.0, 16: 7.0}, 4.0)], "tiny")

    assert best == Rates(products={(8, 4): {8: 6.0, 16: 9.0}}, prefill=3.0, shared=2.0, own=4.0, bandwidth=10.0)


@pytest.fixture
def limit_of_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    def line(cell: Cell, found: Rates) -> dict[str, Any]:
        key = {name: getattr(cell, name) for name in limits.KEY}
        return {"kind": "limit", "cpu": cpu_model(), "seconds": found.own} | key

    monkeypatch.setattr(limits, "limit_line", line)


@pytest.mark.usefixtures("limit_of_own_rate")
def test_a_limit_is_told_again_only_when_better_rates_were_measured(tmp_path: Path) -> None:
    results = tmp_path / "cells.jsonl"
    write(results, [rates({8: 5.0}, 1.0)])

    def told() -> list[float]:
        limits.add_limits([CELL, CELL], results)
        return [line["seconds"] for line in read_lines(results) if line["kind"] == "limit"]

    assert told() == [1.0]
    assert told() == [1.0]
    for more in (rates({8: 5.0}, 0.5), rates({8: 5.0}, 9.0, cpu="another CPU"), rates({8: 5.0}, 9.0, threads=2)):
        with results.open("a") as file:
            file.write(json.dumps(more) + "\n")
        assert told() == [1.0]
    with results.open("a") as file:
        file.write(json.dumps(rates({8: 5.0}, 2.0)) + "\n")
    assert told() == [1.0, 2.0]


@pytest.mark.usefixtures("limit_of_own_rate")
def test_without_rates_there_is_no_limit(tmp_path: Path) -> None:
    results = tmp_path / "cells.jsonl"
    write(results, [rates({8: 5.0}, 1.0, models=["another"])])

    limits.add_limits([CELL], results)

    assert len(read_lines(results)) == 1


def test_rates_of_a_round_are_measured_once_for_each_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "cells.jsonl"
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        calls.append(command)
        return type("Done", (), {"stdout": json.dumps(rates({8: 5.0}, 1.0))})

    monkeypatch.setattr(limits.subprocess, "run", run)
    for tree in ("a", "a", "b"):
        monkeypatch.setattr(limits, "engine_tree", lambda tree=tree: tree)
        limits.measure_rates(CELL, results)

    assert len(calls) == 2
    assert [line["engine_tree"] for line in read_lines(results)] == ["a", "b"]
    assert all(line["round"] == 0 for line in read_lines(results))
