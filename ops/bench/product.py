"""What the product around the engine costs: rows from `submit` to the manifest, and through its engine alone.

    python -m ops.bench.product [--model smollm2-135m] [--rows 164] [--new-tokens 64] [--rounds 5]

One product runs, as embedded mode has it: broker, SQLite, reconciler, worker. In each round a job goes through it, and
as many rows go straight to the engine in its worker while all other processes are stopped; the two come first in turn.
So both have the same weights in the same place and the machine as it is within a minute: whole processes differ by
more than what is to be measured. One JSON line for each round; `overhead` is the job's seconds over the engine's, less
one. The last line has the medians. Rows are HumanEval problems, each behind a token of its round, so that nothing is
shared.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from ops.demo.humaneval import problems
from ops.paths import MODELS, ROOT

if TYPE_CHECKING:
    from jobs.engines import ServingEngine
    from jobs.place import Place
    from jobs.settings import Settings
    from storage.repository import Repository

INSIDE = "--inside"  # in the process that owns the product
FOLDER = "NM_BENCH_FOLDER"  # where that process and its worker leave files for one another
ALONE = signal.SIGRTMIN + 1  # tells the worker to run rows by its engine alone
WARM_UP_ROWS = 8
FIRST_TOKEN = 1000
LOOK_SECONDS = 0.1

# --- in the worker ------------------------------------------------------------------------------------------------


def engine_that_runs_alone(model_dir: Path, settings: Settings) -> ServingEngine:
    """NIGHTMILL_ENGINE_FACTORY: the real engine, which also takes rows from a file when it is told to."""
    from jobs.engines import real_engine

    engine = real_engine(model_dir, settings)
    signal.signal(ALONE, lambda *_: threading.Thread(target=run_alone, args=(engine,), daemon=True).start())
    return engine


def run_alone(engine: ServingEngine) -> None:
    """From `ask.json` to `answer.json`."""
    from engine.request import Request, SamplingParams

    folder = Path(os.environ[FOLDER])
    asked = json.loads((folder / "ask.json").read_text())
    sampling = SamplingParams(max_tokens=asked["new_tokens"], ignore_eos=True)
    requests = [
        Request(request_id=str(row), job="alone", prompt=tuple(prompt), sampling=sampling)
        for row, prompt in enumerate(asked["prompts"])
    ]
    failed = False
    with others_stopped():
        started = time.perf_counter()
        with engine.feed(requests) as feed:
            while not feed.done:
                failed |= any(done.finish_reason == "error" for done in feed.poll(1.0))
        seconds = time.perf_counter() - started
    (folder / "answer.tmp").write_text(json.dumps({"seconds": seconds, "failed": failed}))
    (folder / "answer.tmp").rename(folder / "answer.json")


@contextmanager
def others_stopped() -> Iterator[None]:
    """The owner of the product and its other children stand still."""
    owner = psutil.Process(os.getppid())
    others = [child for child in owner.children() if child.pid != os.getpid()]
    for process in (owner, *others):
        process.suspend()
    try:
        yield
    finally:
        for process in (*others, owner):
            process.resume()


# --- in the process that owns the product -------------------------------------------------------------------------


class Product:
    """A product at work below `folder`, and its two ways for rows."""

    def __init__(self, folder: Path, options: argparse.Namespace, place: Place, repository: Repository) -> None:
        self._folder = folder
        self._options = options
        self._place = place
        self._repository = repository

    @property
    def new_tokens(self) -> int:
        """Of each row."""
        return int(self._options.new_tokens)

    def job(self, name: str, prompts: list[list[int]]) -> dict[str, float]:
        """Seconds from before `submit` until the manifest was in place, of them for planning and in the engine."""
        from jobs import client, progress
        from storage.states import JobState

        started, began = time.perf_counter(), time.time()
        job = self._submit(name, prompts)
        planned = time.perf_counter() - started
        with client.at_work(self._place, job) as check:
            ended = progress.follow(
                self._repository, job.id, poll_seconds=LOOK_SECONDS, tell=lambda moment: None, check=check
            )
        if ended.state is not JobState.COMPLETED or ended.finished_at is None:
            raise RuntimeError(f"job {job.id} is {ended.state}: {ended.error}")
        stats = self._repository.job_stats(job.id)
        return {
            "seconds": ended.finished_at.timestamp() - began,
            "plan_seconds": planned,
            "engine_seconds": stats.engine_seconds,
        }

    def _submit(self, name: str, prompts: list[list[int]]) -> Any:
        from jobs import client
        from jobs.options import SubmitOptions
        from jobs.planning import silent
        from jobs.sampling import Sampling

        path = self._folder / f"{name}.parquet"
        pq.write_table(pa.table({"prompt_token_ids": prompts}), path)
        overrides = {"max_tokens": self._options.new_tokens, "ignore_eos": True, "temperature": 0.0}
        wanted = SubmitOptions(
            inputs=(str(path),),
            output=self._folder / name,
            model=str(MODELS / self._options.model),
            sampling=Sampling().overridden(overrides),
        )
        return client.submit(wanted, self._place, self._repository, silent).job

    def alone(self, prompts: list[list[int]]) -> float:
        """Seconds by the worker's engine alone."""
        answer = self._folder / "answer.json"
        (self._folder / "ask.json").write_text(json.dumps({"prompts": prompts, "new_tokens": self._options.new_tokens}))
        worker = next(child for child in psutil.Process().children() if "jobs.worker" in child.cmdline())
        worker.send_signal(ALONE)
        while not answer.exists():
            time.sleep(LOOK_SECONDS)
        found = json.loads(answer.read_text())
        answer.unlink()
        if found["failed"]:
            raise RuntimeError("a row failed in the engine")
        return float(found["seconds"])


def rounds(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="nm-bench-") as folder:
        os.environ |= {
            "NIGHTMILL_HOME": f"{folder}/home",
            "NIGHTMILL_THREADS": str(options.threads),
            "NIGHTMILL_ENGINE_FACTORY": "ops.bench.product:engine_that_runs_alone",
            "NIGHTMILL_IDLE_EXIT_SECONDS": "86400",  # the worker stays although no job waits while its engine is alone
            FOLDER: folder,
        }
        from jobs.embedded import running
        from jobs.place import find

        place = find()
        rows = token_ids(MODELS / options.model, options.rows)
        with place.repository() as repository, running(place.settings):
            product = Product(Path(folder), options, place, repository)
            product.job("warm", behind(FIRST_TOKEN - 1, rows[:WARM_UP_ROWS]))
            found = [one_round(product, number, rows) for number in range(options.rounds)]
    medians = {name: round(statistics.median(each[name] for each in found), 4) for name in ("overhead", "tok_s")}
    print(json.dumps({"model": options.model, "rows": options.rows, "rounds": options.rounds, "median": medians}))


def one_round(product: Product, number: int, rows: list[list[int]]) -> dict[str, float]:
    alone, job = 0.0, {}
    for first in (True, False):
        if first == (number % 2 == 0):
            alone = product.alone(behind(FIRST_TOKEN + 2 * number, rows))
        else:
            job = product.job(f"round-{number}", behind(FIRST_TOKEN + 2 * number + 1, rows))
    tokens = len(rows) * product.new_tokens
    found = {"alone_seconds": alone, **job, "tok_s": tokens / job["seconds"], "overhead": job["seconds"] / alone - 1}
    found = {name: round(value, 4) for name, value in found.items()}
    print(json.dumps({"round": number + 1, **found}), flush=True)
    return found


def behind(token: int, rows: list[list[int]]) -> list[list[int]]:
    return [[token, *row] for row in rows]


def token_ids(model: Path, rows: int) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return [tokenizer.encode(problem.prompt).ids for problem in problems()[:rows]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time rows through the product and through its engine alone.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=164)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        rounds(options)
    else:  # a process of its own: it is stopped now and then, which a shell would take for the end of its command
        subprocess.run([sys.executable, "-m", "ops.bench.product", *sys.argv[1:], INSIDE], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
