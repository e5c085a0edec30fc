"""How full the engine's batch is while a job of many shards goes through the product.

    python -m ops.bench.occupancy [--model smollm2-135m] [--rows 1280] [--new-tokens 64] [--shard-rows 64]

`submit_job.py` runs the rows in embedded mode. `occupancy` is the mean number of sequences in a step, of the steps
until 95 % of the rows had ended, over the most that may run at once. One JSON line. Rows are HumanEval problems, each
behind a number of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.config import EngineConfig
from ops.bench.machine import cpu_model, git_commit
from ops.bench.models import model_dir, provide
from ops.bench.split import occupancy
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
    """NIGHTMILL_ENGINE_FACTORY: the real engine, which leaves the end and the sequences of every step."""
    from engine.model.runner import ModelRunner
    from jobs.engines import real_engine

    engine, run = real_engine(model_dir, settings), ModelRunner.run
    file = Path(os.environ[STEPS]).open("a", buffering=1, encoding="utf-8")  # noqa: SIM115 (until the process ends)

    def counting(runner: ModelRunner, step: Step) -> list[Sampled]:
        sampled = run(runner, step)
        file.write(json.dumps([time.time(), len(step.chunks)]) + "\n")
        return sampled

    ModelRunner.run = counting  # type: ignore[method-assign]
    return engine


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    texts = [problem.prompt for problem in problems()]
    prompts = [f"# {row}\n{texts[row % len(texts)]}" for row in range(options.rows)]
    pq.write_table(pa.table({"prompt": prompts}), folder / "rows.parquet")
    shard_tokens = options.shard_rows * (PROMPT_TOKENS + options.new_tokens)
    command = [sys.executable, "submit_job.py", str(folder / "rows.parquet"), "-o", str(folder / "out")]
    command += ["--model", str(model_dir(options.model)), "--raw-prompt", "--ignore-eos", "--wait"]
    command += [f"--max-tokens={options.new_tokens}", f"--shard-tokens={shard_tokens}"]
    factory = {"NIGHTMILL_ENGINE_FACTORY": "ops.bench.occupancy:engine_that_counts", STEPS: str(folder / "steps")}
    home = {"NIGHTMILL_HOME": str(folder / "home")}
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=os.environ | factory | home)
    steps = [tuple(json.loads(line)) for line in (folder / "steps").read_text(encoding="utf-8").splitlines()]
    rows = pq.read_table(folder / "out" / "_meta" / "metrics")
    ends = [end.timestamp() for end in rows["finished_at"].to_pylist()]
    most, seconds = EngineConfig().max_sequences, max(ends) - steps[0][0]
    return {
        "kind": "occupancy",
        "model": options.model,
        "rows": len(rows),
        "shards": len(set(rows["shard_id"].to_pylist())),
        "max_sequences": most,
        "steps": len(steps),
        "seconds": round(seconds, 2),
        "tok_s": round(len(rows) * options.new_tokens / seconds, 2),
        "occupancy": occupancy(steps, ends, most, SHARE),
        "cpu": cpu_model(),
        "commit": git_commit(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="How full the engine's batch is in a job of many shards.")
    parser.add_argument("--model", choices=sorted(DEMO_MODELS), default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=1280)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--shard-rows", type=int, default=64)
    options = parser.parse_args()
    provide(options.model)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(options, Path(folder))))


if __name__ == "__main__":
    main()
