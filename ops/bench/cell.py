"""Time one (engine, model, workload) cell in a process of its own; print one JSON line.

    python -m ops.bench.cell --engine nightmill --model gemma3-270m --workload few-shot [--rows 32] [--new-tokens 64]

Loading and one short warm-up are outside the clock. `tok_s` counts new tokens over the whole batch, prefill included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ops.bench.engines import ENGINES
from ops.bench.workloads import WORKLOADS, prompts
from ops.demo.models import MODELS

WARM_UP = [[5, 6, 7, 8], [9, 10, 11, 12, 13]]  # token ids of no workload: nothing of it is found in the cache later


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The cell's line. It has a hash of each row's output ids, so that engines can be compared row by row."""
    token_ids = prompts(options.workload, MODELS / options.model, options.rows)
    loading = time.perf_counter()
    complete = ENGINES[options.engine](MODELS / options.model, options.threads)
    complete(WARM_UP, 4)
    load_seconds = time.perf_counter() - loading
    outcome = complete(token_ids, options.new_tokens)
    new_tokens = sum(len(output) for output in outcome.outputs)
    return {
        "engine": options.engine,
        "model": options.model,
        "workload": options.workload,
        "rows": len(token_ids),
        "prompt_tokens": sum(len(prompt) for prompt in token_ids),
        "cached_tokens": outcome.cached_tokens,
        "new_tokens": new_tokens,
        "seconds": round(outcome.seconds, 3),
        "cpu_seconds": round(outcome.cpu_seconds, 3),
        "tok_s": round(new_tokens / outcome.seconds, 2),
        "load_seconds": round(load_seconds, 2),
        "new_tokens_per_row": options.new_tokens,
        "round": options.round,
        "row_hashes": [hashlib.sha256(str(output).encode()).hexdigest()[:8] for output in outcome.outputs],
        "dtype": "float32",
        "threads": options.threads,
        "cpu": cpu_model(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "detail": outcome.detail,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one (engine, model, workload) cell; print one JSON line.")
    parser.add_argument("--engine", choices=sorted(ENGINES), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--round", type=int, default=0)
    options = parser.parse_args()
    sys.stdout.write(json.dumps(measure(options)) + "\n")


if __name__ == "__main__":
    main()
