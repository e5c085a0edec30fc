"""Time from the start of a process to the first token of a converted model, tokenizer included; print one JSON line.

    python -m ops.bench.first_token --model gemma3-270m

The child does what a worker does before its first row: tokenizer, engine (with torch and transformers, which are only
imported there), one token. `imports` are those of our own modules before.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from typing import Any

from ops.bench.machine import cpu_model, engine_tree, git_commit, versions
from ops.bench.models import model_dir
from ops.paths import ROOT

CHILD = "--child"
PROMPT = "Once upon a time"


def serve_one(model: str, threads: int) -> dict[str, float]:
    """Seconds of each part, in the child."""
    marks = [("", time.perf_counter())]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter()))

    from engine.build import build_engine
    from engine.config import EngineConfig
    from engine.request import Request, SamplingParams
    from jobs.prompts import PromptEncoder

    mark("imports")
    encoder = PromptEncoder.open(model_dir(model))
    ids = encoder.encode_batch([PROMPT], add_special_tokens=True)[0].as_py()
    mark("tokenizer")
    engine = build_engine(model_dir(model), EngineConfig(threads=threads))
    engine.start()
    mark("engine")
    request = Request(request_id="0", job="bench", prompt=ids, sampling=SamplingParams(max_tokens=1))
    with engine.feed([request]) as feed:
        (completion,) = feed
    encoder.decode(completion.token_ids)
    mark("first token")
    return {name: round(end - begin, 3) for (_, begin), (name, end) in itertools.pairwise(marks)}


def measure(model: str, threads: int, number: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "ops.bench.first_token", CHILD, f"--model={model}", f"--threads={threads}"]
    begin = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        text = child.stdout.readline()
        seconds = time.perf_counter() - begin
    if child.returncode != 0:
        raise SystemExit(f"{model} served no token, see above")
    return {
        "kind": "first-token",
        "round": number,
        "model": model,
        "threads": threads,
        "seconds": round(seconds, 3),
        "parts": json.loads(text),
        "cpu": cpu_model(),
        "versions": versions(),
        "commit": git_commit(),
        "engine_tree": engine_tree(),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time from the start of a process to the first token of a model.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument(CHILD, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(serve_one(options.model, options.threads)), flush=True)
    else:
        print(json.dumps(measure(options.model, options.threads, options.round)))


if __name__ == "__main__":
    main()
