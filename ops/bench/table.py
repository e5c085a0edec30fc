"""Result lines as a Markdown table: medians over rounds, and how many times faster than each peer.

    python -m ops.bench.table [--results FILE] [--publish]

With --publish the lines become the committed ones of their processor, and the table replaces what stands between the
two `bench` marks of the README.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from ops.bench.compare import Group, Line, comparable, groups
from ops.bench.engines import ENGINES, OURS
from ops.bench.workloads import WORKLOADS
from ops.paths import BENCH, ROOT

MARKS = re.compile(r"(<!-- bench -->\n).*?(<!-- /bench -->)", re.DOTALL)
COMMITTED = ROOT / "ops" / "bench" / "results.jsonl"


def render(lines: list[Line], cpu: str | None = None) -> str:
    """One row per model and work; each peer's speed stands with how many times faster ours is, and equal outputs."""
    found = groups(lines, cpu)
    if not found:
        return "no results yet: run `make bench`"
    peers = [name for name in ENGINES if name != OURS and any(name in group.lines for group in found)]
    header = ["model", "workload", "outputs x new", "rounds", "nightmill tok/s", *(_title(peer) for peer in peers)]
    header += ["hit rate", "share of the limit"]
    table = [header, ["---"] * len(header), *(_row(group, peers) for group in found)]
    text = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return f"{text}\n\n{conditions(comparable(lines, cpu))}"


def _title(peer: str) -> str:
    precision = ENGINES[peer].precision
    return f"{peer} tok/s" if precision == "float32" else f"{peer} tok/s ({precision})"


def _row(group: Group, peers: list[str]) -> list[str]:
    model, workload, rows, new_tokens, _ = group.key
    outputs = rows * WORKLOADS[workload].num_samples
    rounds = min(len(found) for found in group.lines.values())
    ours = f"{group.median(OURS, 'tok_s'):.1f}" if OURS in group.lines else ""
    share = group.share_of_limit
    return [
        *(model, workload, f"{outputs} x {new_tokens}", str(rounds), ours),
        *(_peer(group, peer) for peer in peers),
        _hit_rate(group),
        "" if share is None else f"{100 * share:.0f} %",
    ]


def _peer(group: Group, peer: str) -> str:
    """For example `80.2 (3.1x, 32 equal)`: equal outputs are counted where both are greedy and float32."""
    if peer not in group.lines:
        return ""
    speed = f"{group.median(peer, 'tok_s'):.1f}"
    times = group.times(peer)
    if times is None:
        return speed
    same_kind = ENGINES[peer].precision == "float32" and not WORKLOADS[group.key[1]].temperature
    equal = f", {group.equal_rows(peer)} equal" if same_kind else ""
    return f"{speed} ({times:.2f}x{equal})"


def _hit_rate(group: Group) -> str:
    if OURS not in group.lines:
        return ""
    line = group.lines[OURS][-1]
    return f"{100 * line['cached_tokens'] / line['prompt_tokens']:.1f} %"


def conditions(cells: list[Line]) -> str:
    """Where, with what and when the comparable cells were measured."""
    last = cells[-1]
    versions = {
        f"{name} {number}" for line in cells for name, number in line["versions"].items() if _is_own(line, name)
    }
    days = sorted({line["measured_at"][:10] for line in cells})
    return (
        f"{last['cpu']}, {last['threads']} threads, float32 unless said; {', '.join(sorted(versions))}; "
        f"measured {' to '.join(dict.fromkeys((days[0], days[-1])))} with `make bench`. "
        "Medians over the rounds; tok/s counts new tokens over the whole batch, prefill included, loading left out. "
        "In brackets: how many times faster nightmill is, and how many outputs are equal token for token."
    )


def _is_own(line: Line, package: str) -> bool:
    """torch and transformers are named as ours has them; a peer's environment names the peer."""
    environment = ENGINES[line["engine"]].environment
    return environment == "ours" or package.startswith(environment.split("-")[0])


def publish(results: Path, committed: Path, readme: Path) -> str:
    """Replace the committed results of this processor by these, and the README's table by theirs."""
    lines = _read(results)
    cpu = lines[-1]["cpu"]
    kept = [line for line in _read(committed) if line["cpu"] != cpu]
    mine = comparable(lines, cpu) + [line for line in lines if line["kind"] != "cell" and line["cpu"] == cpu]
    committed.write_text("".join(json.dumps(line) + "\n" for line in kept + mine))
    table = render(mine)
    text, count = MARKS.subn(lambda marks: f"{marks[1]}{table}\n{marks[2]}", readme.read_text())
    if count != 1:
        raise SystemExit(f"{readme} has no <!-- bench --> ... <!-- /bench --> marks")
    readme.write_text(text)
    return table


def _read(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the results as a table, or publish them in the README.")
    parser.add_argument("--results", type=Path, default=BENCH / "cells.jsonl")
    parser.add_argument("--publish", action="store_true", help="into README.md and ops/bench/results.jsonl")
    options = parser.parse_args()
    if options.publish:
        print(publish(options.results, COMMITTED, ROOT / "README.md"))
    else:
        print(render(_read(options.results)))


if __name__ == "__main__":
    main()
