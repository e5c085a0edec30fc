"""The results as a bar chart: one panel per model, tok/s by workload and engine, the limit as a line over the bars.

    python -m ops.bench.plot [--results FILE] [--to FILE.svg]

Needs the `bench` extra.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

from ops.bench.compare import Line, groups
from ops.bench.engines import ENGINES, OURS
from ops.bench.workloads import WORKLOADS
from ops.paths import ROOT

RESULTS = ROOT / "ops" / "bench" / "results.jsonl"


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one model: `speeds` by (work, engine), `limits` by work, all in tok/s."""

    model: str
    works: tuple[str, ...]
    speeds: dict[tuple[str, str], float]
    limits: dict[str, float]


def panels(lines: list[Line]) -> list[Panel]:
    """Works are named by workload and number of outputs, in the workloads' order, all rows first."""
    found: dict[str, Panel] = {}
    ordered = sorted(
        groups(lines), key=lambda group: (group.key[0], list(WORKLOADS).index(group.key[1]), -group.key[2])
    )
    for group in ordered:
        model, workload, rows, new_tokens, _ = group.key
        outputs = rows * WORKLOADS[workload].num_samples
        work = f"{workload}\n{outputs} x {new_tokens}"
        panel = found.get(model, Panel(model, (), {}, {}))
        speeds = {(work, engine): group.median(engine, "tok_s") for engine in group.lines}
        limits = {} if group.limit_seconds is None else {work: outputs * new_tokens / group.limit_seconds}
        found[model] = Panel(model, (*panel.works, work), panel.speeds | speeds, panel.limits | limits)
    return list(found.values())


def draw(shown: list[Panel], target: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "bench"  # the same figures give the same file
    from matplotlib import pyplot

    engines = [name for name in ENGINES if any((work, name) in panel.speeds for panel in shown for work in panel.works)]
    figure, axes = pyplot.subplots(len(shown), 1, figsize=(9, 3.2 * len(shown)), squeeze=False, layout="constrained")
    width = 0.8 / len(engines)
    for axis, panel in zip(axes[:, 0], shown, strict=True):
        for index, engine in enumerate(engines):
            heights = [panel.speeds.get((work, engine), 0.0) for work in panel.works]
            places = [place - 0.4 + (index + 0.5) * width for place in range(len(panel.works))]
            color = "black" if engine == OURS else f"C{index}"
            precision = ENGINES[engine].precision
            label = engine if precision == "float32" else f"{engine} ({precision})"
            axis.bar(places, heights, width * 0.9, color=color, label=label)
        for place, work in enumerate(panel.works):
            if work in panel.limits:
                label = "limit of the machine" if place == 0 else None
                axis.plot([place - 0.4, place + 0.4], [panel.limits[work]] * 2, color="red", linestyle=":", label=label)
        axis.set_xticks(range(len(panel.works)), panel.works)
        axis.set_ylabel("new tokens per second")
        axis.set_title(panel.model)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].legend(fontsize="small")  # a demo model: it has limits as well
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the committed results.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--to", type=Path, default=RESULTS.with_suffix(".svg"))
    options = parser.parse_args()
    draw(panels([json.loads(line) for line in options.results.read_text().splitlines()]), options.to)


if __name__ == "__main__":
    main()
