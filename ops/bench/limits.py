"""Limit lines of the results file: from the rates of this machine and the workloads' own numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from ops.bench.cells import Cell
from ops.bench.compare import KEY, Line, of_kind
from ops.bench.limit import Rates, limit, shape_of
from ops.bench.machine import cpu_model, engine_tree, versions
from ops.bench.rates import rates_of
from ops.bench.workloads import work_of
from ops.paths import MODELS, ROOT


def read_lines(results: Path) -> list[Line]:
    """Of a file that may not be there yet."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def measure_rates(cell: Cell, results: Path, *, brief: bool = False) -> None:
    """Append the rates of the cell's round and model, from a process of their own, unless the file has them."""
    mine = _here(cell.threads) | {"round": cell.round, "engine_tree": engine_tree()}
    if any(
        mine.items() <= line.items() and cell.model in line["models"] for line in of_kind(read_lines(results), "rates")
    ):
        return
    command = [sys.executable, "-m", "ops.bench.rates", "--models", cell.model, f"--threads={cell.threads}"]
    done = subprocess.run(
        [*command, *(["--brief"] if brief else [])], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    _append(results, [json.loads(done.stdout) | {"round": cell.round, "engine_tree": mine["engine_tree"]}])


def best_rates(lines: list[Line], model: str) -> Rates:
    """The best of every figure: a machine that others use as well is not equally fast in each round."""
    found = [rates_of(line, model) for line in lines]
    products: dict[tuple[int, int], dict[int, float]] = {}
    for rates in found:
        for shape, by_rows in rates.products.items():
            best = products.setdefault(shape, {})
            best.update({rows: max(rate, best.get(rows, 0.0)) for rows, rate in by_rows.items()})
    names = ("prefill", "shared", "own", "bandwidth")
    return Rates(products=products, **{name: max(getattr(rates, name) for rates in found) for name in names})


def limit_line(cell: Cell, rates: Rates) -> Line:
    """The least seconds for the cell's work, with its parts."""
    shape = shape_of(json.loads((MODELS / cell.model / "config.json").read_text()))
    work = work_of(cell.workload, cell.model, cell.rows, cell.new_tokens_per_row)
    parts = limit(shape, work, rates)
    seconds = sum(parts.values())
    return {
        "kind": "limit",
        **{name: getattr(cell, name) for name in KEY},
        "cpu": cpu_model(),
        "seconds": round(seconds, 3),
        "tok_s": round(work.num_outputs * work.new_tokens / seconds, 2),
        "parts": {name: round(part, 3) for name, part in parts.items()},
    }


def add_limits(cells: list[Cell], results: Path) -> None:
    """Append one limit for each work of `cells`, by all rates that the file has of this machine and these versions.

    What the file says already is not said again; of several limits of one work the last counts.
    """
    lines = read_lines(results)
    known = {tuple(line[name] for name in KEY): line for line in of_kind(lines, "limit") if line["cpu"] == cpu_model()}
    new = []
    for key, cell in {tuple(getattr(cell, name) for name in KEY): cell for cell in cells}.items():
        here = _here(cell.threads).items()
        rates = [line for line in of_kind(lines, "rates") if here <= line.items() and cell.model in line["models"]]
        if rates and (line := limit_line(cell, best_rates(rates, cell.model))) != known.get(key):
            new.append(line)
    _append(results, new)


def _here(threads: int) -> Line:
    return {"cpu": cpu_model(), "versions": versions(), "threads": threads}


def _append(results: Path, lines: list[Line]) -> None:
    with results.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
