"""How full the engine's batch is while a job of many shards goes through the product.

    python -m ops.bench.occupancy [--model smollm2-135m] [--rows 1280] [--new-tokens 64] [--shard-rows 64]
    python -m ops.bench.occupancy --rows 640 --new-tokens 8-256 [--order prefix]   # each row its own number of these

`submit_job.py` runs the rows in embedded mode. Both figures are about the steps until 95 % of the rows had ended:

| figure | is |
|---|---|
| occupancy | the mean number of sequences in a step, over the most that may run at once |
| occupancy_by_time | the same, each step weighted by its seconds; time in which no step ran counts as an empty batch |

The second is lower: the batch fills while long steps compute the first prompts, however fast that is done. One JSON
line, in which `fewest_rows` is the size of the smallest shard, `seconds` run from the first step to the last row and
`tail_seconds` from the end of those 95 %; `job_seconds` are from submit to manifest, loading the model included. Rows
are HumanEval problems, each behind a number of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from engine.config import EngineConfig
from jobs.options import Order
from ops.bench.machine import cpu_model, git_commit
from ops.bench.models import model_dir, provide
from ops.bench.split import end_of, occupancy, occupancy_by_time
from ops.demo.humaneval import problems
from ops.demo.models import DEMO_MODELS
from ops.paths import ROOT

if TYPE_CHECKING:
    from engine.step import Sampled, Step
    from jobs.engines import ServingEngine
    from jobs.settings import Settings

SHARE = 0.95
PROMPT_TOKENS = 140  # of a typical problem: only the size of shards follows from it
STEPS = "NM_BENCH_STEPS"  # the file to which the worker writes its steps


def engine_that_counts(model_dir: Path, settings: Settings) -> ServingEngine:
    """NIGHTMILL_ENGINE_FACTORY: the real engine, which leaves begin, end and sequences of every step."""
    from engine.model.runner import ModelRunner
    from jobs.engines import real_engine

    engine, run = real_engine(model_dir, settings), ModelRunner.run
    file = Path(os.environ[STEPS]).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115 (until the process ends)

    def counting(runner: ModelRunner, step: Step) -> list[Sampled]:
        begin = time.time()
        sampled = run(runner, step)
        file.write(json.dumps([begin, time.time(), len(step.chunks)]) + "\n")
        return sampled

    ModelRunner.run = counting  # type: ignore[method-assign]
    return engine


def lengths(asked: str, rows: int) -> list[int]:
    """New tokens of each row: the number that was asked for, or drawn from `least-most`, the same in every run."""
    least, _, most = asked.partition("-")
    draw = random.Random(0)
    return [draw.randint(int(least), int(most or least)) for _ in range(rows)]


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    texts = [problem.prompt for problem in problems()]
    prompts = [f"# {row}\n{texts[row % len(texts)]}" for row in range(options.rows)]
    new_tokens = lengths(options.new_tokens, options.rows)
    pq.write_table(pa.table({"prompt": prompts, "max_tokens": new_tokens}), folder / "rows.parquet")
    shard_tokens = options.shard_rows * (PROMPT_TOKENS + sum(new_tokens) // options.rows)
    command = [sys.executable, "submit_job.py", str(folder / "rows.parquet"), "-o", str(folder / "out")]
    command += ["--model", str(model_dir(options.model)), "--raw-prompt", "--ignore-eos", "--wait"]
    command += [f"--shard-tokens={shard_tokens}", f"--order={options.order}"]
    factory = {"NIGHTMILL_ENGINE_FACTORY": "ops.bench.occupancy:engine_that_counts", STEPS: str(folder / "steps")}
    home = {"NIGHTMILL_HOME": str(folder / "home")}
    submitted = time.time()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=os.environ | factory | home)
    job_seconds = time.time() - submitted
    timed = [tuple(json.loads(line)) for line in (folder / "steps").read_text(encoding="utf-8").splitlines()]
    steps = [(end, count) for _, end, count in timed]
    rows = pq.read_table(folder / "out" / "_meta" / "metrics")
    ends = [end.timestamp() for end in rows["finished_at"].to_pylist()]
    most, seconds = EngineConfig().max_sequences, max(ends) - timed[0][0]
    shards = Counter(rows["shard_id"].to_pylist())
    return {
        "kind": "occupancy",
        "model": options.model,
        "rows": len(rows),
        "new_tokens": options.new_tokens,
        "order": options.order,
        "shards": len(shards),
        "fewest_rows": min(shards.values()),
        "max_sequences": most,
        "steps": len(steps),
        "seconds": round(seconds, 2),
        "tail_seconds": round(max(ends) - end_of(ends, SHARE), 2),
        "job_seconds": round(job_seconds, 2),
        "tok_s": round(sum(new_tokens) / seconds, 2),
        "occupancy": occupancy(steps, ends, most, SHARE),
        "occupancy_by_time": occupancy_by_time(timed, ends, most, SHARE),
        "cpu": cpu_model(),
        "commit": git_commit(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How full the engine's batch is in a job of many shards.")
    parser.add_argument("--model", choices=sorted(DEMO_MODELS), default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=1280)
    parser.add_argument("--new-tokens", default="64")
    parser.add_argument("--shard-rows", type=int, default=64)
    parser.add_argument("--order", choices=get_args(Order), default="longest-branch")
    options = parser.parse_args()
    provide(options.model)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(options, Path(folder))))


if __name__ == "__main__":
    main()
