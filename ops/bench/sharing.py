"""What sharing costs where nothing is shared: the same rows by two engines, one with sharing and one without.

    python -m ops.bench.sharing [--model smollm2-135m] [--rows 64] [--new-tokens 64] [--runs 5]

Both are alike and take turns step by step, each first in every second step, so that what else the machine
does meets both alike. Each run has new engines; one JSON line for each. `ratio` is the time with sharing over the time
without, by the clock and by CPU time; `schedule_seconds` are those of scheduler and cache, [with, without]. Rows are
HumanEval problems, each behind a token of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.config import EngineConfig
from engine.feed import Feed
from engine.heap import keep_freed_memory
from engine.loop import Engine
from engine.model.load import LoadedModel, load_model
from engine.model.runner import ModelRunner
from engine.request import Request, SamplingParams
from ops.bench.models import model_dir
from ops.demo.humaneval import problems

FIRST_TOKEN = 1000  # of the first row: plain words in the vocabularies of both demo models
CACHE_BYTES = 3 << 30


class Side:
    """One of the two engines, and the time that it took."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig, prompts: list[tuple[int, ...]], new: int) -> None:
        """`loaded` serves this side alone: a runner puts its own memory into the model's layers."""
        resolved = loaded.resolve(config)
        runner = ModelRunner(loaded, resolved)
        self.engine = Engine(
            runner, loaded.groups, resolved, loaded.eos_token_ids, loaded.max_model_len, loaded.vocab_size
        )
        sampling = SamplingParams(max_tokens=new, ignore_eos=True)
        requests = [
            Request(request_id=str(row), job="bench", prompt=prompt, sampling=sampling)
            for row, prompt in enumerate(prompts)
        ]
        self.feed: Feed = self.engine.feed(requests)
        self.seconds = self.cpu_seconds = 0.0

    def turn(self) -> bool:
        clock, cpu = time.perf_counter(), time.process_time()
        goes_on = self.engine.turn()
        self.seconds += time.perf_counter() - clock
        self.cpu_seconds += time.process_time() - cpu
        return goes_on

    def tokens(self) -> list[tuple[int, ...]]:
        done = sorted(self.feed.poll(0.0), key=lambda completion: int(completion.request_id))
        return [completion.token_ids for completion in done]

    @property
    def schedule_seconds(self) -> float:
        totals = self.engine.totals()
        return totals.schedule_seconds + totals.update_seconds


def one_run(
    loaded: tuple[LoadedModel, LoadedModel], config: EngineConfig, prompts: list[tuple[int, ...]], new: int
) -> dict[str, Any]:
    """Raises RuntimeError when the two do not give the same tokens."""
    without = replace(config, allow_block_sharing=False, use_prefix_sharing=False)
    sides = [Side(loaded[0], config, prompts, new), Side(loaded[1], without, prompts, new)]
    on, off = sides
    goes_on, steps = True, 0
    while goes_on:
        turns = [side.turn() for side in sides]  # both, even when one has nothing left to do
        goes_on = any(turns)
        sides.reverse()
        steps += 1
    tokens = on.tokens()
    if tokens != off.tokens() or len(tokens) != len(prompts):
        raise RuntimeError("tokens differ with sharing and without")
    return {
        "steps": steps - 1,
        "seconds": [round(on.seconds, 3), round(off.seconds, 3)],
        "ratio": round(on.seconds / off.seconds, 4),
        "cpu_ratio": round(on.cpu_seconds / off.cpu_seconds, 4),
        "schedule_seconds": [round(on.schedule_seconds, 3), round(off.schedule_seconds, 3)],
    }


def measure(options: argparse.Namespace) -> None:
    keep_freed_memory()
    config = EngineConfig(threads=options.threads, cache_bytes=CACHE_BYTES)
    path: Path = model_dir(options.model)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    prompts = [
        (FIRST_TOKEN + row, *tokenizer.encode(problem.prompt).ids)
        for row, problem in enumerate(problems()[: options.rows])
    ]
    loaded = (load_model(path, config), load_model(path, config))
    one_run(loaded, config, prompts[:8], 4)  # warm
    ratios = []
    for number in range(1, options.runs + 1):
        found = one_run(loaded if number % 2 else loaded[::-1], config, prompts, options.new_tokens)
        ratios.append((found["ratio"], found["cpu_ratio"]))
        print(json.dumps({"model": options.model, "rows": len(prompts), "run": number} | found), flush=True)
    medians = [statistics.median(values) for values in zip(*ratios, strict=True)]
    print(json.dumps({"model": options.model, "median_ratio": medians[0], "median_cpu_ratio": medians[1]}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="What sharing costs where nothing is shared.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    # In a thread of its own, as the loop is: this one has a pool of OpenMP threads already if anything computed in it.
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(measure, parser.parse_args()).result()


if __name__ == "__main__":
    main()
