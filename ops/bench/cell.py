"""Time one (engine, model, workload) cell in a process of its own; print one JSON line.

    python -m ops.bench.cell --engine nightmill --model gemma3-270m --workload few-shot [--rows 32] [--new-tokens 64]

Loading and one short warm-up are outside the clock. `tok_s` counts new tokens over the whole batch, prefill included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import sys
import time
from typing import Any

from ops.bench.engines import ENGINES
from ops.bench.machine import cpu_model, engine_tree, git_commit, versions
from ops.bench.models import model_dir
from ops.bench.work import Outcome, Setup, Work
from ops.bench.workloads import WORKLOADS, work_of
from ops.paths import BENCH

WARM_UP = Work(prompts=[[5, 6, 7, 8], [9, 10, 11, 12, 13]], new_tokens=4)
"""Token ids of no workload: nothing of it is found in the cache later."""


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The cell's line. It has a hash of each output's ids, so that engines can be compared row by row."""
    work = work_of(options.workload, options.model, options.rows, options.new_tokens)
    setup = Setup(
        model_dir=model_dir(options.model),
        gguf=BENCH / "gguf" / f"{options.model}.gguf",
        threads=options.threads,
        longest=max(map(len, work.prompts)) + work.new_tokens,
        options=json.loads(options.options),
    )
    loading = time.perf_counter()
    complete = ENGINES[options.engine].load(setup)
    complete(WARM_UP)
    load_seconds = time.perf_counter() - loading
    outcome = complete(work)
    if len(outcome.outputs) != work.num_outputs or any(len(ids) != work.new_tokens for ids in outcome.outputs):
        raise SystemExit(f"{options.engine} did not give {work.num_outputs} outputs of {work.new_tokens} tokens")
    return identity(options) | figures(work, outcome) | {"load_seconds": round(load_seconds, 2)}


def identity(options: argparse.Namespace) -> dict[str, Any]:
    """What was measured, where and when."""
    return {
        "kind": "cell",
        "round": options.round,
        "engine": options.engine,
        "model": options.model,
        "workload": options.workload,
        "rows": options.rows,
        "new_tokens_per_row": options.new_tokens,
        "threads": options.threads,
        "options": json.loads(options.options),
        "dtype": json.loads(options.options).get("dtype", ENGINES[options.engine].precision),
        "cpu": cpu_model(),
        "versions": versions(),
        "commit": git_commit(),
        "engine_tree": engine_tree(),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def figures(work: Work, outcome: Outcome) -> dict[str, Any]:
    new_tokens = sum(map(len, outcome.outputs))
    return {
        "prompt_tokens": sum(map(len, work.prompts)),
        "cached_tokens": outcome.cached_tokens,
        "new_tokens": new_tokens,
        "seconds": round(outcome.seconds, 3),
        "cpu_seconds": round(outcome.cpu_seconds, 3),
        "tok_s": round(new_tokens / outcome.seconds, 2),
        "split": outcome.split,
        "occupancy": outcome.occupancy,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "row_hashes": [hashlib.sha256(str(output).encode()).hexdigest()[:8] for output in outcome.outputs],
        "detail": outcome.detail,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one (engine, model, workload) cell; print one JSON line.")
    parser.add_argument("--engine", choices=sorted(ENGINES), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", choices=sorted(WORKLOADS), required=True)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--options", default="{}", help="switches of the engine, as JSON")
    parser.add_argument("--round", type=int, default=0)
    options = parser.parse_args()
    line = json.dumps(measure(options))
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
