"""Processes that settle and read a data set, for tests that kill them or let them meet.

    python -m tests.faults.settling settle DATASET LABEL RUN    settle one published run, dying where the settings say
    python -m tests.faults.settling switch DATASET NAME TIMES   publish and settle runs of all labels, again and again
    python -m tests.faults.settling read DATASET                read until `stop` lies beside the data set; says what

Every run of a label has other texts, and as many rows as ROWS says.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from jobs.datasets.settle import Settled, settle_run
from jobs.datasets.terms import DatasetTerms
from jobs.settings import Settings
from storage import failpoints
from storage.dataset.card import SNIPPETS
from storage.dataset.reading import open_dataset
from storage.durable import sha256_file
from tests.unit.jobs.datasets.samples import ended_job
from tests.unit.storage.dataset.samples import Night, publish_night

ROWS = {"2026-11-23": 10, "2026-11-24": 20, "2026-11-25": 15}
FAILING = DatasetTerms(min_success_rate=0.95, keep_runs=0, grace_hours=1)
PASSING = DatasetTerms(min_success_rate=0.5, keep_runs=0, grace_hours=0, keep_failed_days=0)


def settle(dataset: Path, label: str, run: str, terms: DatasetTerms = PASSING) -> Settled:
    manifest = dataset / "_runs" / label / run / "manifest.json"
    night = Night(label, run, json.loads(manifest.read_bytes())["rows"], sha256_file(manifest))
    return settle_run(ended_job(dataset, night), label, run, dataset, terms)


def switch(dataset: Path, name: str, times: int) -> None:
    """Every third run of a label fails its gate. What was replaced stays for its readers."""
    for time in range(times):
        for label, rows in ROWS.items():
            run = f"{name}-{time}"
            publish_night(dataset, label, run, rows)
            settle(dataset, label, run, FAILING if time % 3 == 2 else DatasetTerms(keep_runs=0, grace_hours=1))


def read(dataset: Path) -> dict[str, Any]:
    """How often it was read, in how many forms, and what was wrong with it."""
    os.chdir(dataset)
    problems, seen, times = set(), set(), 0
    while not (dataset.parent / "stop").exists():
        table = open_dataset(dataset).to_table() if times % 2 else three_lines()
        runs = Counter()
        for label, text in zip(table["dt"].to_pylist(), table["output_text"].to_pylist(), strict=True):
            if text is not None:
                runs[label, text.rsplit(" ", 1)[0]] += 1
        found = {label: count for (label, _), count in runs.items()}
        if len(runs) != len(found) or any(not run.startswith(label) for label, run in runs):
            problems.add(f"a mixture: {sorted(runs)}")
        if any(count != ROWS[label] - ROWS[label] // 5 for label, count in found.items()):
            problems.add(f"not all rows: {found}")
        seen.add(tuple(sorted(run for _, run in runs)))
        times += 1
        if times == 1:
            print("reading", flush=True)
    return {"times": times, "forms": len(seen), "problems": sorted(problems)}


def three_lines() -> Any:
    """As the card says it, in the data set's folder."""
    names: dict[str, Any] = {}
    exec(SNIPPETS["pyarrow"], names)
    return names["table"]


def main(what: str, dataset: Path, *rest: str) -> None:
    failpoints.arm(Settings().failpoints)
    match what:
        case "settle":
            print(settle(dataset, *rest).reason)
        case "switch":
            switch(dataset, rest[0], int(rest[1]))
        case "read":
            print(json.dumps(read(dataset)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
