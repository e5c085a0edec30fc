"""`make bench`: time every (engine, model, workload) cell in turn, each in a process of its own; print a table.

    python -m ops.bench.run [--rounds 1] [--rows 32] [--models gemma3-270m] [--workloads no-share] [--fresh]

The engines alternate within each round, so that a change of the machine's load meets both. Lines are appended to
the results file; cells that it already has are skipped, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ops.bench.engines import ENGINES
from ops.bench.table import render
from ops.bench.workloads import BENCH, WORKLOADS
from ops.demo.models import DEMO_MODELS, ROOT


@dataclass(frozen=True, slots=True)
class Cell:
    """What one process measures. The fields are keys of its result line."""

    round: int
    model: str
    workload: str
    engine: str
    rows: int
    new_tokens_per_row: int
    threads: int

    def command(self) -> list[str]:
        flags = {"engine": self.engine, "model": self.model, "workload": self.workload, "rows": self.rows}
        flags |= {"new-tokens": self.new_tokens_per_row, "threads": self.threads, "round": self.round}
        return [sys.executable, "-m", "ops.bench.cell", *(f"--{name}={value}" for name, value in flags.items())]


def read_lines(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def missing(cells: list[Cell], lines: list[dict[str, Any]]) -> list[Cell]:
    """The cells without a line, in their order."""
    return [cell for cell in cells if not any(asdict(cell).items() <= line.items() for line in lines)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time every (engine, model, workload) cell; print a table.")
    parser.add_argument("--engines", nargs="+", choices=sorted(ENGINES), default=["nightmill", "transformers-cb"])
    parser.add_argument("--models", nargs="+", choices=sorted(DEMO_MODELS), default=sorted(DEMO_MODELS))
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path, default=BENCH / "results.jsonl")
    parser.add_argument("--fresh", action="store_true", help="forget the results file first")
    options = parser.parse_args()
    if options.fresh:
        options.results.unlink(missing_ok=True)
    cells = [
        Cell(number, model, workload, engine, options.rows, options.new_tokens, options.threads)
        for number in range(options.rounds)
        for model in options.models
        for workload in options.workloads
        for engine in options.engines
    ]
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for cell in missing(cells, read_lines(options.results)):
        done = subprocess.run(cell.command(), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        line = done.stdout.splitlines()[-1]
        print(line, flush=True)
        with options.results.open("a") as file:
            file.write(line + "\n")
    print(render(read_lines(options.results)))


if __name__ == "__main__":
    main()
