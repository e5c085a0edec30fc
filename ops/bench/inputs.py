"""Write the workloads as Parquet, and their token ids for one model. Files that are there are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
from tokenizers import Tokenizer

from ops.bench.workloads import WORKLOADS, ids_path, parquet_path
from ops.demo.humaneval import Problem, behind_examples, problems
from ops.demo.input import write_input


def rows_of(workload: str) -> list[Problem]:
    every = problems()
    if workload == "few-shot":
        every = behind_examples(every)
    return every[: WORKLOADS[workload].rows]


def write_workload(workload: str) -> Path:
    """The workload's Parquet file. It appears by one rename."""
    path = parquet_path(workload)
    if not path.exists():
        scratch = path.with_suffix(".new")
        write_input(scratch, rows_of(workload))
        scratch.rename(path)
    return path


def write_ids(workload: str, model_dir: Path) -> Path:
    """Token ids of the prompts of the workload's Parquet file, in the model's own tokens."""
    path = ids_path(workload, model_dir.name)
    if not path.exists():
        tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        texts = pq.read_table(write_workload(workload), columns=["prompt"])["prompt"].to_pylist()
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps([tokenizer.encode(text).ids for text in texts]))
        scratch.rename(path)
    return path
