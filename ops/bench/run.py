"""`make bench`: time every (engine, model, workload) cell in turn, each in a process of its own; print a table.

    python -m ops.bench.run [--engines nightmill vllm] [--models gemma3-270m] [--workloads no-share] [--rows 32]
                            [--rounds 3] [--parts peers switches hybrid first-token] [--fresh]

Ours and vLLM alternate on all rows, so that a change of the machine's load meets both; the slower peers run once on
the first 32 rows, with ours on the same. Lines are appended to the results file; cells that it already has under the
same conditions are skipped, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ops.bench.cells import Cell, Conditions, Scope, full_and_few, hybrid, missing, switches
from ops.bench.engines import ENGINES, OURS
from ops.bench.environments import fetch_gguf, python_of, set_up
from ops.bench.inputs import write_ids
from ops.bench.limits import add_limits, measure_rates, read_lines
from ops.bench.machine import cpu_model, engine_tree, versions_of
from ops.bench.models import model_dir, provide
from ops.bench.table import report
from ops.bench.workloads import WORKLOADS
from ops.demo.models import DEMO_MODELS
from ops.paths import BENCH, ROOT

DEFAULT_ENGINES = (OURS, "vllm", "transformers-cb", "transformers-generate", "llama.cpp")

PARTS = ("peers", "switches", "hybrid", "first-token")


def command(cell: Cell) -> list[str]:
    flags = {"engine": cell.engine, "model": cell.model, "workload": cell.workload, "rows": cell.rows}
    flags |= {"new-tokens": cell.new_tokens_per_row, "threads": cell.threads, "round": cell.round}
    flags["options"] = json.dumps(cell.options)
    python = python_of(ENGINES[cell.engine].environment)
    return [python, "-m", "ops.bench.cell", *(f"--{name}={value}" for name, value in flags.items())]


def _run(words: list[str], results: Path) -> dict[str, Any]:
    """The line that a process of the bench prints; the results file has it from then on."""
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"`{' '.join(words)}` failed, see above; run `make bench` again to go on")
    text = done.stdout.splitlines()[-1]
    with results.open("a") as file:
        file.write(text + "\n")
    line: dict[str, Any] = json.loads(text)
    return line


def prepare(cells: list[Cell]) -> None:
    """Everything that the cells read: models, token ids, environments, GGUF files."""
    for model in sorted({cell.model for cell in cells}):
        provide(model)
    for model, workload in sorted({(cell.model, cell.workload) for cell in cells}):
        write_ids(workload, model_dir(model))
    for environment in sorted({ENGINES[cell.engine].environment for cell in cells} - {"ours"}):
        set_up(environment)
    for model in sorted({cell.model for cell in cells if cell.engine == "llama.cpp"}):
        fetch_gguf(model)


def conditions(engines: set[str]) -> Conditions:
    found = {name: versions_of(python_of(ENGINES[name].environment)) for name in engines}
    return Conditions(cpu=cpu_model(), versions=found, engine_tree=engine_tree())


def run_first_tokens(models: list[str], rounds: int, threads: int, results: Path) -> None:
    """Rounds that the results file has of this engine tree and processor are not run again."""
    here = {"kind": "first-token", "cpu": cpu_model(), "engine_tree": engine_tree(), "threads": threads}
    for model in models:
        provide(model)
    results.parent.mkdir(parents=True, exist_ok=True)
    has = [(line["model"], line["round"]) for line in read_lines(results) if here.items() <= line.items()]
    for number, model in ((number, model) for number in range(rounds) for model in models):
        if (model, number) not in has:
            flags = [f"--model={model}", f"--threads={threads}", f"--round={number}"]
            line = _run([sys.executable, "-m", "ops.bench.first_token", *flags], results)
            print(f"first token of {model}, round {number}: {line['seconds']} s", flush=True)


def run_missing(cells: list[Cell], results: Path, *, brief: bool = False) -> list[dict[str, Any]]:
    """Every line of the file after the cells that it lacks were run."""
    prepare(cells)
    results.parent.mkdir(parents=True, exist_ok=True)
    limited = [cell for cell in cells if cell.engine == OURS and cell.model in DEMO_MODELS and not cell.options]
    left = missing(cells, read_lines(results), conditions({cell.engine for cell in cells}))
    for number, cell in enumerate(left, 1):
        if cell in limited:
            measure_rates(cell, results, brief=brief)
        line = _run(command(cell), results)
        where = f"{cell.model} {cell.workload} {cell.rows} rows, round {cell.round}"
        print(f"[{number}/{len(left)}] {cell.engine}, {where}: {line['tok_s']} tok/s", flush=True)
    add_limits(limited, results)
    return read_lines(results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time every (engine, model, workload) cell; print a table.")
    parser.add_argument("--engines", nargs="+", choices=sorted(ENGINES), default=DEFAULT_ENGINES)
    parser.add_argument("--models", nargs="+", choices=sorted(DEMO_MODELS), default=sorted(DEMO_MODELS))
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="only the first ROWS of each workload")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path, default=BENCH / "cells.jsonl")
    parser.add_argument("--fresh", action="store_true", help="forget the results file first")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    if options.fresh:
        options.results.unlink(missing_ok=True)
    scope = Scope(
        engines=tuple(options.engines),
        models=tuple(options.models),
        workloads=tuple(options.workloads),
        rounds=options.rounds,
        new_tokens=options.new_tokens,
        threads=options.threads,
        most_rows=options.rows,
    )
    parts = {"peers": full_and_few(scope), "switches": switches(scope), "hybrid": hybrid(scope)}
    if "first-token" in options.parts:
        run_first_tokens(options.models, options.rounds, options.threads, options.results)
    for name in options.parts:
        if name in parts:
            run_missing(parts[name], options.results)
    print(report(read_lines(options.results)))


if __name__ == "__main__":
    main()
