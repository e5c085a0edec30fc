"""Two repositories that are asked the same questions and must give the same answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass, replace
from functools import partial
from typing import Any

from storage.errors import Fenced
from storage.records import Claim, Job
from tests.memory import MemoryRepository


class Twins:
    """Everything goes to both; the real one's answer counts."""

    def __init__(self, real: Any, model: MemoryRepository) -> None:
        self.real = real
        self.model = model
        self.compared = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._both, name)

    def _both(self, name: str, *arguments: Any, **named: Any) -> Any:
        self.compared += 1
        theirs = _outcome(getattr(self.model, name), arguments, named)
        ours = _outcome(getattr(self.real, name), arguments, named)
        assert _timeless(ours) == _timeless(theirs), f"{name}{arguments}: the real one says {ours}, the model {theirs}"
        if isinstance(ours, Fenced):
            raise ours
        return ours


def _outcome(call: Callable[..., Any], arguments: Any, named: Any) -> Any:
    try:
        return call(*arguments, **named)
    except Fenced as error:
        return error


def _timeless(answer: Any) -> Any:
    """Without what the model does not keep: times, and the key that a job was created under."""
    if isinstance(answer, Fenced):
        return str(answer)
    if isinstance(answer, Job):
        times = {"created_at": None, "started_at": None, "finished_at": None}
        return replace(answer, **times)  # type: ignore[arg-type]
    if isinstance(answer, Claim):
        return (answer.shard, _timeless(answer.job))
    if isinstance(answer, list):
        return [_timeless(one) for one in answer]
    assert answer is None or is_dataclass(answer) or isinstance(answer, int | tuple | dict), answer
    return answer
