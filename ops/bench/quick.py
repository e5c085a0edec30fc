"""`make bench-quick`: in under three minutes, how this tree does beside the last committed figures of this processor.

    python -m ops.bench.quick

Share of the limit and ratio to transformers' continuous batching on a few rows; both are ratios of one run, so that
they mean something on a busy machine as well. Nothing is kept but the file of the last run.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ops.bench.cells import Cell
from ops.bench.compare import Group, Line, groups
from ops.bench.engines import OURS
from ops.bench.limits import read_lines
from ops.bench.run import run_missing
from ops.paths import BENCH, ROOT

MODEL, ROWS, NEW_TOKENS = "smollm2-135m", 16, 32
PEER = "transformers-cb"
LAST = BENCH / "quick.jsonl"
COMMITTED = ROOT / "ops" / "bench" / "quick.jsonl"


def cells(threads: int) -> list[Cell]:
    """The peer runs on short prompts alone: behind a long prefix it takes minutes."""
    asked = (("no-share", OURS), ("no-share", PEER), ("few-shot", OURS))
    return [Cell(0, MODEL, workload, engine, ROWS, NEW_TOKENS, threads) for workload, engine in asked]


def report(lines: list[Line], committed: list[Line]) -> str:
    """One line per work; committed figures count only where they are of the same processor and the same work."""
    now = groups(lines)
    cpu = next(line["cpu"] for line in reversed(lines))
    before = {group.key: group for group in groups(committed, cpu)}
    title = f"{cpu}; committed figures of it: {'none' if not before else _day(before)}"
    return "\n".join([title, *(_line(group, before.get(group.key)) for group in now)])


def _day(before: dict[tuple[object, ...], Group]) -> str:
    days = {line["measured_at"][:10] for group in before.values() for found in group.lines.values() for line in found}
    return max(days)


def _line(group: Group, before: Group | None) -> str:
    model, workload, rows, new_tokens, _ = group.key
    parts = [f"{group.median(OURS, 'tok_s'):.1f} tok/s{_beside(before and before.median(OURS, 'tok_s'), '.1f')}"]
    if group.share_of_limit is not None:
        parts.append(f"{group.share_of_limit:.0%} of the limit{_beside(before and before.share_of_limit, '.0%')}")
    if (times := group.times(PEER)) is not None:
        parts.append(f"{times:.2f}x {PEER}{_beside(before and before.times(PEER), '.2f', 'x')}")
    return f"{model} {workload} {rows} x {new_tokens}: {', '.join(parts)}"


def _beside(committed: float | None, form: str, unit: str = "") -> str:
    return "" if committed is None else f" (committed {committed:{form}}{unit})"


def main() -> None:
    parser = argparse.ArgumentParser(description="A few rows of ours and transformers, beside the committed figures.")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--results", type=Path, default=LAST)
    options = parser.parse_args()
    options.results.unlink(missing_ok=True)
    lines = run_missing(cells(options.threads), options.results, brief=True)
    print(report(lines, read_lines(COMMITTED)))


if __name__ == "__main__":
    main()
