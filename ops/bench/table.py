"""Result lines as a Markdown table: medians over rounds, and how many times faster than each peer.

python -m ops.bench.table [--results FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from ops.bench.compare import Group, Line, comparable, groups, of_kind
from ops.bench.engines import ENGINES, OURS
from ops.bench.workloads import WORKLOADS
from ops.paths import BENCH


def render(lines: list[Line], cpu: str | None = None) -> str:
    """One row per model and work; each peer's speed stands with how many times faster ours is, and equal outputs."""
    found = groups(lines, cpu)
    if not found:
        return "no results yet: run `make bench`"
    peers = [name for name in ENGINES if name != OURS and any(name in group.lines for group in found)]
    header = ["model", "workload", "outputs x new", "rounds", "nightmill tok/s", *(_title(peer) for peer in peers)]
    header += ["hit rate", "share of the limit"]
    table = [header, ["---"] * len(header), *(_row(group, peers) for group in found)]
    return f"{_markdown(table)}\n\n{conditions(comparable(lines, cpu))}"


def report(lines: list[Line], cpu: str | None = None) -> str:
    """Every table that the lines have something for."""
    parts = [render(lines, cpu), switches_table(lines, cpu), first_token_text(lines, cpu)]
    return "\n\n".join(part for part in parts if part)


def switches_table(lines: list[Line], cpu: str | None = None) -> str:
    """Ours with either attention, sharing on and off; empty without such lines."""
    switched = [line for line in comparable(lines, cpu) if line["options"]]
    if not switched:
        return ""
    header = ["model", "attention", "sharing", "generated tokens", "seconds", "tok/s", "peak MiB of keys and values"]
    rows = [header, ["---"] * len(header)]
    for line in sorted(switched, key=lambda line: line["model"]):
        native, sharing = (line["options"][name] for name in ("native_attention", "allow_block_sharing"))
        rows.append(
            [
                *(line["model"], "native" if native else "plain torch", "on" if sharing else "off"),
                *(str(line["new_tokens"]), f"{line['seconds']:.1f}", f"{line['tok_s']:.1f}"),
                f"{line['detail']['kv_peak_mib']:.0f}",
            ]
        )
    return _markdown(rows)


def first_token_text(lines: list[Line], cpu: str | None = None) -> str:
    """One sentence; empty without such lines."""
    found = of_kind(lines, "first-token")
    cpu = cpu or (found[-1]["cpu"] if found else None)
    newest = [line for line in found if line["cpu"] == cpu and line["engine_tree"] == found[-1]["engine_tree"]]
    seconds = {
        model: statistics.median(line["seconds"] for line in newest if line["model"] == model)
        for model in sorted({line["model"] for line in newest})
    }
    each = ", ".join(f"{one:.1f} s with {model}" for model, one in seconds.items())
    return f"From the start of a process to the first token, tokenizer included: {each}." if each else ""


def _markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the results as a table.")
    parser.add_argument("--results", type=Path, default=BENCH / "cells.jsonl")
    options = parser.parse_args()
    print(report([json.loads(line) for line in options.results.read_text().splitlines()]))


if __name__ == "__main__":
    main()
