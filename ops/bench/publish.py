"""`make bench-publish`: make the last results the committed ones of their processor; put the tables into the README.

    python -m ops.bench.publish

Lines of other processors stay, so that `bench-quick` finds its own wherever it runs, and so do their tables.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ops.bench import plot, quick
from ops.bench.compare import Line, comparable, groups
from ops.bench.limits import read_lines
from ops.bench.table import report
from ops.paths import BENCH, ROOT

MARKS = re.compile(r"(<!-- bench -->\n).*?(<!-- /bench -->)", re.DOTALL)

PLOT = "![The same as bars, with the limit of the machine](ops/bench/results.svg)"


def merge(results: Path, committed: Path) -> list[Line]:
    """Replace the committed lines of the results' processor; returns all, the new ones last."""
    lines = read_lines(results)
    cpu = lines[-1]["cpu"]
    others = [line for line in read_lines(committed) if line["cpu"] != cpu]
    mine = [line for line in lines if line["kind"] != "cell" and line["cpu"] == cpu] + comparable(lines, cpu)
    committed.write_text("".join(json.dumps(line) + "\n" for line in others + mine))
    return others + mine


def by_processor(lines: list[Line]) -> dict[str, list[Line]]:
    """The lines of each processor, the one that was measured last first."""
    return {cpu: [line for line in lines if line["cpu"] == cpu] for cpu in (line["cpu"] for line in reversed(lines))}


def plotted(lines: list[Line]) -> str:
    """The processor that most work was measured on."""
    return max(by_processor(lines), key=lambda cpu: len(groups(lines, cpu)))


def write_tables(lines: list[Line], readme: Path) -> None:
    """Each processor's tables below its name, and the plot below those that it shows."""
    parts = [
        f"### {cpu}\n\n{report(mine, cpu)}" + (f"\n\n{PLOT}" if cpu == plotted(lines) else "")
        for cpu, mine in by_processor(lines).items()
    ]
    shown = "\n\n".join(parts)
    text, count = MARKS.subn(lambda marks: f"{marks[1]}{shown}\n{marks[2]}", readme.read_text())
    if count != 1:
        raise SystemExit(f"{readme} has no <!-- bench --> ... <!-- /bench --> marks")
    readme.write_text(text)


def main() -> None:
    lines = merge(BENCH / "cells.jsonl", plot.RESULTS)
    write_tables(lines, ROOT / "README.md")
    plot.draw(plot.panels(by_processor(lines)[plotted(lines)]), plot.RESULTS.with_suffix(".svg"))
    if quick.LAST.exists():
        merge(quick.LAST, quick.COMMITTED)
    print(report(lines, lines[-1]["cpu"]))


if __name__ == "__main__":
    main()
