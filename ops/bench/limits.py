"""Limit lines of the results file: from the rates of this machine and the workloads' own numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ops.bench.cells import Cell
from ops.bench.compare import KEY, Line, of_kind
from ops.bench.limit import limit, shape_of
from ops.bench.machine import cpu_model, versions
from ops.bench.rates import rates_of
from ops.bench.workloads import work_of
from ops.paths import MODELS, ROOT


def measured_rates(lines: list[Line], cell: Cell, *, brief: bool = False) -> Line:
    """The rates of the cell's round and model on this machine, or new ones, from a process of their own."""
    here = {"cpu": cpu_model(), "versions": versions(), "threads": cell.threads, "round": cell.round}
    for line in reversed(of_kind(lines, "rates")):
        if here.items() <= line.items() and cell.model in line["models"]:
            return line
    command = [sys.executable, "-m", "ops.bench.rates", "--models", cell.model, f"--threads={cell.threads}"]
    done = subprocess.run(
        [*command, *(["--brief"] if brief else [])], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    line = json.loads(done.stdout) | {"round": cell.round}
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
        "round": cell.round,
        **{name: getattr(cell, name) for name in KEY},
        "cpu": rates["cpu"],
        "rates_measured_at": rates["measured_at"],
        "seconds": round(seconds, 3),
        "tok_s": round(work.num_outputs * work.new_tokens / seconds, 2),
        "parts": {name: round(part, 3) for name, part in parts.items()},
    }


def add_limit(cell: Cell, results: Path, *, brief: bool = False) -> None:
    """Append the limit of the cell's work in its round, and the rates of that round; nothing that is there already.

    Each round has rates of its own, since a machine that others use as well is not equally fast in each.
    """
    lines = [json.loads(text) for text in results.read_text().splitlines()] if results.exists() else []
    known = len(lines)
    rates = measured_rates(lines, cell, brief=brief)
    mine = {name: getattr(cell, name) for name in ("round", *KEY)} | {"rates_measured_at": rates["measured_at"]}
    if not any(mine.items() <= line.items() for line in of_kind(lines, "limit")):
        lines.append(limit_line(cell, rates))
    with results.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines[known:])
