"""The two workloads as token ids, made once per model and kept, so that every engine gets exactly the same input.

no-share    HumanEval problems as they are: short prompts that share nothing
few-shot    the same kind of problem behind six solved ones: one long shared prefix
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from ops.demo.humaneval import few_shot_problems, problems
from ops.demo.models import ROOT

BENCH = ROOT / ".cache" / "bench"
WORKLOADS = ("no-share", "few-shot")


def prompts(workload: str, model_dir: Path, rows: int) -> list[list[int]]:
    """Token ids of the first `rows` prompts of a workload, in the model's own tokens."""
    kept = BENCH / "prompts" / f"{model_dir.name}-{workload}.json"
    if not kept.exists():
        tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
        texts = [problem.prompt for problem in (few_shot_problems() if workload == "few-shot" else problems())]
        kept.parent.mkdir(parents=True, exist_ok=True)
        scratch = kept.with_suffix(".new")
        scratch.write_text(json.dumps([tokenizer.encode(text).ids for text in texts]))
        scratch.rename(kept)
    every: list[list[int]] = json.loads(kept.read_text())
    if rows > len(every):
        raise SystemExit(f"workload {workload} has {len(every)} rows, not {rows}")
    return every[:rows]
