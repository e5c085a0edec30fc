"""What the product around the engine costs: the same rows from `submit` to the manifest, and in the engine alone.

    python -m ops.bench.product [--model smollm2-135m] [--rows 164] [--new-tokens 64] [--rounds 1]

Both are warm: model loaded, a few other rows run before. They take turns, each in a process of its own; one JSON line
for each. `overhead` of a product's line is its seconds over those of the engine's line before it, less one. Rows are
HumanEval problems, which share nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ops.demo.humaneval import problems

ROOT = Path(__file__).parents[2]
MODELS = ROOT / ".cache" / "models"
WARM_UP_ROWS = 8
LOOK_SECONDS = 0.5  # between two looks at the job, as `submit` has it: each takes the engine's cores for a moment


def token_ids(model: Path, rows: int) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return [tokenizer.encode(problem.prompt).ids for problem in problems()[:rows]]


def engine_alone(options: argparse.Namespace) -> dict[str, Any]:
    """The engine as the worker makes it, fed from a list."""
    from engine.request import Request, SamplingParams
    from jobs.engines import real_engine
    from jobs.settings import Settings

    engine = real_engine(MODELS / options.model, Settings(threads=options.threads))
    engine.start()
    sampling = SamplingParams(max_tokens=options.new_tokens, ignore_eos=True)

    def complete(prompts: list[list[int]]) -> float:
        requests = [
            Request(request_id=str(row), job="bench", prompt=tuple(prompt), sampling=sampling)
            for row, prompt in enumerate(prompts)
        ]
        started = time.perf_counter()
        with engine.feed(requests) as feed:
            while not feed.done:
                if any(done.finish_reason == "error" for done in feed.poll(1.0)):
                    raise RuntimeError("a row failed")
        return time.perf_counter() - started

    rows = token_ids(MODELS / options.model, options.rows)
    complete([row[::-1] for row in rows[:WARM_UP_ROWS]])
    seconds = complete(rows)
    engine.stop()
    return line("engine", options, seconds)


def whole_product(options: argparse.Namespace) -> dict[str, Any]:
    """Embedded mode as its users have it: broker, SQLite, reconciler and worker beside this process."""
    with tempfile.TemporaryDirectory(prefix="nm-bench-") as folder:
        os.environ |= {"NIGHTMILL_HOME": f"{folder}/home", "NIGHTMILL_THREADS": str(options.threads)}
        from jobs import client
        from jobs.place import find

        place = find()
        rows = token_ids(MODELS / options.model, options.rows)
        with place.repository() as repository:
            warm = _submit(Path(folder), "warm", [row[::-1] for row in rows[:WARM_UP_ROWS]], options, place, repository)
            with client.at_work(place, warm) as check:
                _wait(repository, warm.id, check)
                started, began = time.perf_counter(), time.time()
                job = _submit(Path(folder), "timed", rows, options, place, repository)
                planned = time.perf_counter() - started
                ended = _wait(repository, job.id, check)
                seconds = ended.timestamp() - began
            stats = repository.job_stats(job.id)
        return line("product", options, seconds) | {
            "plan_seconds": round(planned, 3),
            "engine_seconds": round(stats.engine_seconds, 3),
            "new_tokens": stats.completion_tokens,
        }


def _submit(folder: Path, name: str, rows: list[list[int]], options: argparse.Namespace, place: Any, sql: Any) -> Any:
    from jobs import client
    from jobs.options import SubmitOptions
    from jobs.planning import silent
    from jobs.sampling import Sampling

    path = folder / f"{name}.parquet"
    pq.write_table(pa.table({"prompt_token_ids": rows}), path)
    wanted = SubmitOptions(
        inputs=(str(path),),
        output=folder / name,
        model=str(MODELS / options.model),
        sampling=Sampling().overridden({"max_tokens": options.new_tokens, "ignore_eos": True, "temperature": 0.0}),
    )
    return client.submit(wanted, place, sql, silent).job


def _wait(repository: Any, job_id: Any, check: Any) -> datetime:
    """When the manifest was in place, to leave out the time until somebody looks."""
    from jobs import progress
    from storage.states import JobState

    ended = progress.follow(repository, job_id, poll_seconds=LOOK_SECONDS, tell=lambda moment: None, check=check)
    if ended.state is not JobState.COMPLETED:
        raise RuntimeError(f"job {job_id} is {ended.state}: {ended.error}")
    assert ended.finished_at is not None
    return ended.finished_at


def line(what: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    new_tokens = options.rows * options.new_tokens
    return {
        "what": what,
        "model": options.model,
        "rows": options.rows,
        "new_tokens": new_tokens,
        "threads": options.threads,
        "seconds": round(seconds, 3),
        "tok_s": round(new_tokens / seconds, 2),
        "load": round(os.getloadavg()[0], 2),
    }


def take_turns(options: argparse.Namespace, flags: list[str]) -> None:
    for _ in range(options.rounds):
        alone = 0.0
        for what in ("engine", "product"):
            command = [sys.executable, "-m", "ops.bench.product", *flags, "--what", what]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            if what == "engine":
                alone = found["seconds"]
            else:
                found["overhead"] = round(found["seconds"] / alone - 1, 4)
            print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the same rows through the product and through the engine alone.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=164)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--what", choices=("engine", "product"), help="only this one, here")
    options = parser.parse_args()
    if options.what is None:
        take_turns(options, sys.argv[1:])
    else:
        print(json.dumps((engine_alone if options.what == "engine" else whole_product)(options)))


if __name__ == "__main__":
    main()
