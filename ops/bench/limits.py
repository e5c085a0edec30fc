"""Limit lines of the results file: from the rates of this machine and the workloads' own numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ops.bench.cells import Cell
from ops.bench.compare import KEY, Line, of_kind
from ops.bench.limit import limit, shape_of
from ops.bench.machine import cpu_model, versions
from ops.bench.rates import rates_of
from ops.bench.workloads import work_of
from ops.paths import MODELS, ROOT


def measured_rates(lines: list[Line], models: set[str], threads: int, *, brief: bool = False) -> Line:
    """The last rates of this machine and versions that know the models, or new ones, from a process of their own."""
    here = {"cpu": cpu_model(), "versions": versions(), "threads": threads}
    for line in reversed(of_kind(lines, "rates")):
        if here.items() <= line.items() and models <= set(line["models"]):
            return line
    command = [sys.executable, "-m", "ops.bench.rates", "--models", *sorted(models), f"--threads={threads}"]
    done = subprocess.run(
        [*command, *(["--brief"] if brief else [])], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    line = json.loads(done.stdout)
    lines.append(line)
    return line


def limit_line(cell: Cell, rates: Line) -> Line:
    """The least seconds for the cell's work, with its parts."""
    shape = shape_of(json.loads((MODELS / cell.model / "config.json").read_text()))
    work = work_of(cell.workload, cell.model, cell.rows, cell.new_tokens_per_row)
    parts = limit(shape, work, rates_of(rates, cell.model))
    seconds = sum(parts.values())
    return {
        "kind": "limit",
        **{name: getattr(cell, name) for name in KEY},
        "cpu": rates["cpu"],
        "rates_measured_at": rates["measured_at"],
        "seconds": round(seconds, 3),
        "tok_s": round(work.num_outputs * work.new_tokens / seconds, 2),
        "parts": {name: round(part, 3) for name, part in parts.items()},
    }


def add_limits(cells: list[Cell], results: Path, *, brief: bool = False) -> None:
    """Append the rates if they are missing, and one limit for each work of `cells` that has none from these rates."""
    lines = [json.loads(text) for text in results.read_text().splitlines()] if results.exists() else []
    known = len(lines)
    threads = cells[0].threads
    rates = measured_rates(lines, {cell.model for cell in cells}, threads, brief=brief)
    has = {_work_key(line) for line in of_kind(lines, "limit") if line["rates_measured_at"] == rates["measured_at"]}
    for cell in {_cell_key(cell): cell for cell in cells}.values():
        if _cell_key(cell) not in has:
            lines.append(limit_line(cell, rates))
    with results.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines[known:])


def _work_key(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in KEY)


def _cell_key(cell: Cell) -> tuple[Any, ...]:
    return tuple(getattr(cell, name) for name in KEY)
