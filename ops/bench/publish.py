"""`make bench-publish`: make the last results the committed ones of their processor; put their table into the README.

    python -m ops.bench.publish

Lines of other processors stay, so that `bench-quick` finds its own wherever it runs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ops.bench import plot, quick
from ops.bench.compare import Line, comparable
from ops.bench.run import read_lines
from ops.bench.table import report
from ops.paths import BENCH, ROOT

MARKS = re.compile(r"(<!-- bench -->\n).*?(<!-- /bench -->)", re.DOTALL)

PLOT = "![The same as bars, with the limit of the machine](ops/bench/results.svg)"


def merge(results: Path, committed: Path) -> list[Line]:
    """Replace the committed lines of the results' processor; returns the new ones."""
    lines = read_lines(results)
    cpu = lines[-1]["cpu"]
    others = [line for line in read_lines(committed) if line["cpu"] != cpu]
    mine = [line for line in lines if line["kind"] != "cell" and line["cpu"] == cpu] + comparable(lines, cpu)
    committed.write_text("".join(json.dumps(line) + "\n" for line in others + mine))
    return mine


def write_table(lines: list[Line], readme: Path) -> None:
    shown = f"{report(lines)}\n\n{PLOT}"
    text, count = MARKS.subn(lambda marks: f"{marks[1]}{shown}\n{marks[2]}", readme.read_text())
    if count != 1:
        raise SystemExit(f"{readme} has no <!-- bench --> ... <!-- /bench --> marks")
    readme.write_text(text)


def main() -> None:
    lines = merge(BENCH / "cells.jsonl", plot.RESULTS)
    write_table(lines, ROOT / "README.md")
    plot.draw(plot.panels(lines), plot.RESULTS.with_suffix(".svg"))
    if quick.LAST.exists():
        merge(quick.LAST, quick.COMMITTED)
    print(report(lines))


if __name__ == "__main__":
    main()
