"""What a switch of the engine costs or gains: the same rows by two engines, one with it and one without.

    python -m ops.bench.switch narrow_last_layer [--model smollm2-135m] [--rows 64] [--new-tokens 64] [--runs 6]
    python -m ops.bench.switch allow_block_sharing,use_prefix_sharing   # sharing, where nothing is shared

The two take turns step by step, each first in every second step, so that whatever else the machine does meets both
alike: whole runs differ by more than most switches do. Each run loads both anew, in turn the one and the other first:
where in memory weights come to lie makes a hundredth. One JSON line for each run. `ratio` is the time with the switch
over the time without, by the clock and by CPU time; `schedule_seconds` are those of scheduler and cache, [with,
without]. The last line has medians over the runs. Rows are HumanEval problems, each behind a token of its own,
so that they share nothing.
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
    path: Path, configs: dict[bool, EngineConfig], prompts: list[tuple[int, ...]], new: int, first: bool
) -> dict[str, Any]:
    """`first` is loaded first. Raises RuntimeError when the two do not give the same tokens."""
    made = {side: Side(load_model(path, configs[side]), configs[side], prompts, new) for side in (first, not first)}
    on, off = made[True], made[False]
    sides = [on, off]
    goes_on, steps = True, 0
    while goes_on:
        turns = [side.turn() for side in sides]  # both, even when one has nothing left to do
        goes_on = any(turns)
        sides.reverse()
        steps += 1
    tokens = on.tokens()
    if tokens != off.tokens() or len(tokens) != len(prompts):
        raise RuntimeError("tokens differ with the switch and without")
    return {
        "steps": steps - 1,
        "seconds": [round(on.seconds, 3), round(off.seconds, 3)],
        "ratio": round(on.seconds / off.seconds, 4),
        "cpu_ratio": round(on.cpu_seconds / off.cpu_seconds, 4),
        "schedule_seconds": [round(on.schedule_seconds, 3), round(off.schedule_seconds, 3)],
    }


def measure(options: argparse.Namespace) -> None:
    keep_freed_memory()
    base = EngineConfig(threads=options.threads, cache_bytes=CACHE_BYTES)
    configs = {side: replace(base, **dict.fromkeys(options.switches.split(","), side)) for side in (True, False)}
    path: Path = model_dir(options.model)
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    prompts = [
        (FIRST_TOKEN + row, *tokenizer.encode(problem.prompt).ids)
        for row, problem in enumerate(problems()[: options.rows])
    ]
    one_run(path, configs, prompts[:8], 4, True)  # warm
    runs = []
    for number in range(options.runs):
        runs.append(one_run(path, configs, prompts, options.new_tokens, number % 2 == 0))
        print(json.dumps({"model": options.model, "rows": len(prompts), "run": number + 1} | runs[-1]), flush=True)
    medians = {name: round(statistics.median(run[name] for run in runs), 4) for name in ("ratio", "cpu_ratio")}
    print(json.dumps({"model": options.model, "rows": len(prompts), "median": medians}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="What a switch of the engine costs or gains.")
    parser.add_argument("switches", help="names of EngineConfig that are on or off, with commas")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    # In a thread of its own, as the loop is: this one has a pool of OpenMP threads already if anything computed in it.
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(measure, parser.parse_args()).result()


if __name__ == "__main__":
    main()
