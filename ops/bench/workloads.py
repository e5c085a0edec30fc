"""The workloads by name, and their token ids, made once per model so that every engine gets exactly the same input.

no-share    164 HumanEval problems as they are: short prompts that share nothing
few-shot    the same 164 behind six solved ones: one long shared prefix
fan-out     the first 20 of them, eight samples each at temperature 0.8

`ops.bench.inputs` writes the files; this module only reads them, since every environment imports it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ops.bench.work import Work
from ops.paths import BENCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How many rows there are, and how each is completed."""

    rows: int
    num_samples: int = 1
    temperature: float = 0.0


WORKLOADS = {
    "no-share": Workload(rows=164),
    "few-shot": Workload(rows=164),
    "fan-out": Workload(rows=20, num_samples=8, temperature=0.8),
}


def parquet_path(workload: str) -> Path:
    """Columns custom_id and prompt: an input of `submit_job.py`."""
    return BENCH / "workloads" / f"{workload}.parquet"


def ids_path(workload: str, model: str) -> Path:
    return BENCH / "workloads" / f"{workload}-{model}.json"


def work_of(workload: str, model: str, rows: int, new_tokens: int) -> Work:
    """The first `rows` prompts of a workload, in the model's own tokens."""
    every: list[list[int]] = json.loads(ids_path(workload, model).read_text())
    if rows > len(every):
        raise SystemExit(f"workload {workload} has {len(every)} rows, not {rows}")
    shape = WORKLOADS[workload]
    return Work(
        prompts=every[:rows], new_tokens=new_tokens, num_samples=shape.num_samples, temperature=shape.temperature
    )
