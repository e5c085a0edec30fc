"""How Flower shows one shard's task: job, shard and model in words, its result line without quotes.

Only what is shown changes; Flower searches what the events carry, so `kwargs:job_id=7` and `gemma` find a task.
"""

from __future__ import annotations

import ast
from typing import Any, Protocol

COLUMNS = "name,kwargs,state,result,exception,received,runtime,worker,uuid"


class Task(Protocol):
    """The fields of a task in Flower's memory that we change; texts as the events carried them, or None."""

    uuid: str
    name: str | None
    args: str | None
    kwargs: str | None
    result: str | None


def format_task(task: Task) -> Task:
    """Rewrite a copy of a task for the page. What we do not know stays as it is."""
    arguments = _literal(task.kwargs)
    if isinstance(arguments, dict) and "job_id" in arguments:
        task.kwargs = describe(arguments)
    elif task.kwargs is None and task.name is None:  # Flower started after the task: only the id is known
        task.name, task.kwargs = "run_shard", f"shard id {task.uuid.partition('.')[0]}"
    result = _literal(task.result)
    if isinstance(result, str):
        task.result = result
    if task.name is not None:
        task.name = task.name.rpartition(".")[2]
    return task


def describe(arguments: dict[str, Any]) -> str:
    """`job 7 · shard 3 · gemma3-270m` from the keyword arguments of the task."""
    words = [f"job {arguments['job_id']}"]
    shard = arguments.get("shard", arguments.get("shard_id"))
    if shard is not None:
        words.append(f"shard {shard}")
    if arguments.get("model"):
        words.append(str(arguments["model"]))
    return " · ".join(words)


def _literal(text: str | None) -> Any:
    """The Python value that a repr stands for, or None when it is cut or no literal."""
    try:
        return ast.literal_eval(text) if text else None
    except (ValueError, SyntaxError):
        return None
