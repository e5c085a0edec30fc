"""Result lines as a Markdown table: medians over rounds, and how many times faster than the comparison.

    python -m ops.bench.table [--results FILE] [--readme README.md]

With --readme the table replaces what stands between the two `bench` marks of that file.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from ops.bench.workloads import BENCH

OURS = "nightmill"
BASELINE = "transformers-cb"
KEY = ("model", "workload", "rows", "new_tokens_per_row", "threads")
MARKS = re.compile(r"(<!-- bench -->\n).*?(<!-- /bench -->)", re.DOTALL)


def render(lines: list[dict[str, Any]]) -> str:
    """One row per model and workload, one column per engine; the ratios are ours over the comparison."""
    if not lines:
        return "no results yet: run `make bench`"
    engines = sorted({line["engine"] for line in lines})
    cells: dict[tuple[Any, ...], Cells] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        cells[tuple(line[name] for name in KEY)][line["engine"]].append(line)
    header = ["model", "workload", "rows x new", "rounds", *(f"{engine} tok/s" for engine in engines)]
    header += ["times faster", "by CPU time", "equal rows", "hit rate"]
    table = [header, ["---"] * len(header)]
    for (model, workload, rows, new_tokens, _), found in sorted(cells.items()):
        speeds = {engine: median(found, engine, "tok_s") for engine in found}
        table.append(
            [model, workload, f"{rows} x {new_tokens}", str(min(len(found[engine]) for engine in found))]
            + [f"{speeds[engine]:.1f}" if engine in speeds else "" for engine in engines]
            + _comparison(found)
        )
    rows_text = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return f"{rows_text}\n\n{_conditions(lines)}"


Cells = dict[str, list[dict[str, Any]]]
"""The lines of one model and workload, by engine."""


def median(found: Cells, engine: str, name: str) -> float:
    return float(statistics.median(line[name] for line in found[engine]))


def _comparison(found: Cells) -> list[str]:
    """Ratios of wall and CPU time, rows with equal outputs, and our hit rate; empty where a side is missing."""
    if OURS not in found:
        return ["", "", "", ""]
    hits = f"{100 * found[OURS][-1]['cached_tokens'] / found[OURS][-1]['prompt_tokens']:.1f} %"
    if BASELINE not in found:
        return ["", "", "", hits]
    wall, cpu = (median(found, BASELINE, name) / median(found, OURS, name) for name in ("seconds", "cpu_seconds"))
    ours, theirs = (found[engine][-1]["row_hashes"] for engine in (OURS, BASELINE))
    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    return [f"{wall:.1f}", f"{cpu:.1f}", f"{equal} of {len(ours)}", hits]


def _conditions(lines: list[dict[str, Any]]) -> str:
    last = lines[-1]
    return (
        f"Medians over the rounds; {last['cpu']}, {last['threads']} threads, {last['dtype']}, "
        f"torch {last['torch']}, transformers {last['transformers']}, Python {last['python']}; "
        f"measured {last['measured_at'][:10]}. "
        "tok/s counts new tokens over the whole batch, prefill included, loading left out."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the results as a table, or put it into a README.")
    parser.add_argument("--results", type=Path, default=BENCH / "results.jsonl")
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.results.read_text().splitlines()]
    table = render(lines)
    print(table)
    if options.readme:
        text, count = MARKS.subn(lambda marks: f"{marks[1]}{table}\n{marks[2]}", options.readme.read_text())
        if count != 1:
            raise SystemExit(f"{options.readme} has no <!-- bench --> ... <!-- /bench --> marks")
        options.readme.write_text(text)


if __name__ == "__main__":
    main()
