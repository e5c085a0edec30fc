"""What a step costs beside the model while 100,000 requests wait, and what drawing tokens costs.

    python -m ops.bench.waiting [--model smollm2-135m] [--requests 100000] [--steps 100] [--new-tokens 64]

Scheduler, cache and runner as an engine has them, without a feed: that one lets only a few requests wait at a time. One
JSON line for greedy rows and one for rows with temperature 0.8 and top-p 0.95; `shares` are of the time of all steps,
in which rows begin and end all the time. Rows are HumanEval problems, each behind a token of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

from tokenizers import Tokenizer

from engine.cache.manager import KVCache
from engine.config import EngineConfig
from engine.heap import keep_freed_memory
from engine.model.load import load_model
from engine.model.project import ProjectedTiles
from engine.model.runner import ModelRunner, PagedLayers
from engine.request import Request, SamplingParams
from engine.scheduler import Scheduler
from ops.bench.machine import cpu_model, git_commit
from ops.bench.models import model_dir, provide
from ops.bench.split import Stopwatch, split_of
from ops.demo.humaneval import problems

FIRST_TOKEN = 1000  # of the first row: plain words in the vocabularies of both demo models
CACHE_BYTES = 3 << 30
KINDS: dict[str, dict[str, Any]] = {"greedy": {}, "top-p": {"temperature": 0.8, "top_p": 0.95}}


def queue(
    scheduler: Scheduler, prompts: list[list[int]], options: argparse.Namespace, kind: str, vocab_size: int
) -> None:
    """Every request waits before the first step."""
    for row in range(options.requests):
        sampling = SamplingParams(max_tokens=options.new_tokens, ignore_eos=True, seed=row, **KINDS[kind])
        first = FIRST_TOKEN + row % (vocab_size - FIRST_TOKEN)
        prompt = (first, *prompts[row % len(prompts)])
        scheduler.submit(Request(request_id=str(row), job="bench", prompt=prompt, sampling=sampling))


def measure(options: argparse.Namespace, kind: str, stopwatch: Stopwatch) -> dict[str, Any]:
    path = model_dir(options.model)
    loaded = load_model(path, EngineConfig(threads=options.threads, cache_bytes=CACHE_BYTES))
    config = loaded.resolve(EngineConfig(threads=options.threads))
    runner = ModelRunner(loaded, config)
    cache = KVCache(loaded.groups, [loaded.num_blocks] * len(loaded.groups), max_chunk=config.max_batch_tokens)
    scheduler = Scheduler(
        cache,
        max_batch_tokens=config.max_batch_tokens,
        max_sequences=config.max_sequences,
        max_model_len=loaded.max_model_len,
        eos_token_ids=loaded.eos_token_ids,
        vocab_size=loaded.vocab_size,
    )
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    prompts = [tokenizer.encode(problem.prompt).ids for problem in problems()]
    queue(scheduler, prompts, options, kind, loaded.vocab_size)
    return {"kind": "waiting", "sampling": kind, "model": options.model} | run_steps(
        scheduler, runner, options.steps, stopwatch
    )


def run_steps(scheduler: Scheduler, runner: ModelRunner, steps: int, stopwatch: Stopwatch) -> dict[str, Any]:
    schedule = run = update = 0.0
    ended, fewest = 0, scheduler.num_waiting
    stopwatch.reset()
    begin = time.perf_counter()
    for _ in range(steps):
        start = time.perf_counter()
        step = scheduler.schedule()
        assert step is not None, "too few requests for so many steps"
        scheduled = time.perf_counter()
        sampled = runner.run(step)
        ran = time.perf_counter()
        ended += len(scheduler.update(step, sampled, ran - scheduled))
        updated = time.perf_counter()
        schedule, run, update = schedule + scheduled - start, run + ran - scheduled, update + updated - ran
        fewest = min(fewest, scheduler.num_waiting)
    seconds = time.perf_counter() - begin
    parts = split_of(seconds, schedule, run, update, stopwatch.read())
    return {
        "waiting": fewest,
        "ended": ended,
        "steps": steps,
        "step_ms": round(1e3 * seconds / steps, 1),
        "shares": {name: round(part / seconds, 4) for name, part in parts.items()},
        "schedule_inputs_update": round(sum(parts[name] for name in ("schedule", "inputs", "update")) / seconds, 4),
        "cpu": cpu_model(),
        "commit": git_commit(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What a step costs beside the model while many requests wait.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    options = parser.parse_args()
    keep_freed_memory()
    provide(options.model)
    stopwatch = Stopwatch()
    stopwatch.attach(ModelRunner, PagedLayers, ProjectedTiles)
    for kind in options.kinds:
        print(json.dumps(measure(options, kind, stopwatch)), flush=True)


if __name__ == "__main__":
    main()
