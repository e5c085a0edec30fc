"""What other types than float32 do to the answers: speed, memory, and how often they choose float32's token.

    python -m ops.bench.precision --model gemma3-270m [--rows 32] [--new-tokens 64] [--dtypes int8 bfloat16]

Each type runs in a process of its own: the workload "no-share" greedily, then, behind each beginning of float32's own
answers, one token more. `agreement` is the share of those in which it chooses as float32 did; `equal_rows` are the
free answers that are the same to the end, which one token early on decides. One JSON line for each type.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ops.bench.engines.ours import nightmill
from ops.bench.inputs import write_ids
from ops.bench.machine import cpu_model, engine_tree, git_commit, versions
from ops.bench.models import model_dir, provide
from ops.bench.work import Setup, Work
from ops.bench.workloads import work_of
from ops.demo.models import DEMO_MODELS
from ops.paths import BENCH, ROOT

WORKLOAD = "no-share"
CACHE_BYTES = 2 * 2**30


def resident_mib() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) // 1024


def measure(options: argparse.Namespace, dtype: str, reference: Path) -> dict[str, Any]:
    """In a process of its own. Float32 writes its answers to `reference`, the others read them."""
    work = work_of(WORKLOAD, options.model, options.rows, options.new_tokens)
    setup = Setup(
        model_dir=model_dir(options.model),
        gguf=BENCH / "gguf" / f"{options.model}.gguf",
        threads=options.threads,
        longest=max(map(len, work.prompts)) + work.new_tokens,
        options={"dtype": dtype, "cache_bytes": CACHE_BYTES},
    )
    complete = nightmill(setup)
    line: dict[str, Any] = {"kind": "precision", "model": options.model, "dtype": dtype, "resident_mib": resident_mib()}
    outcome = complete(work)
    line["tok_s"] = round(work.num_outputs * work.new_tokens / outcome.seconds, 2)
    if not reference.exists():
        reference.write_text(json.dumps(outcome.outputs), encoding="utf-8")
    answers: list[list[int]] = json.loads(reference.read_text(encoding="utf-8"))
    equal = [own == answer for own, answer in zip(outcome.outputs, answers, strict=True)]
    chosen = complete(forced(work, answers)).outputs
    wanted = [[token] for answer in answers for token in answer]
    same = [one == other for one, other in zip(chosen, wanted, strict=True)]
    line |= {"rows": len(equal), "equal_rows": sum(equal), "agreement": round(sum(same) / len(same), 4)}
    here = {"threads": options.threads, "cpu": cpu_model(), "versions": versions()}
    return line | here | {"commit": git_commit(), "engine_tree": engine_tree()}


def forced(work: Work, answers: list[list[int]]) -> Work:
    """Every beginning of every answer behind its prompt, for one token more."""
    prompts = [
        prompt + answer[:count]
        for prompt, answer in zip(work.prompts, answers, strict=True)
        for count in range(len(answer))
    ]
    return Work(prompts=prompts, new_tokens=1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed, memory and agreement with float32 of other types.")
    parser.add_argument("--model", choices=sorted(DEMO_MODELS), required=True)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtypes", nargs="+", default=["int8", "bfloat16"])
    parser.add_argument("--child", nargs=2, metavar=("DTYPE", "REFERENCE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options, options.child[0], Path(options.child[1]))))
        return
    provide(options.model)
    write_ids(WORKLOAD, model_dir(options.model))
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", *options.dtypes):
            command = [sys.executable, "-m", "ops.bench.precision", *sys.argv[1:]]
            command += ["--child", dtype, str(Path(folder) / "float32.json")]
            subprocess.run(command, cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
