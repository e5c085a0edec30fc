"""What a cell hands to an engine and gets back: token ids in, token ids and times out.

Every environment imports this module, so it needs nothing but Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Prompts to be completed with exactly `new_tokens` each, `num_samples` times, EOS ignored."""

    prompts: list[list[int]]
    new_tokens: int
    num_samples: int = 1
    temperature: float = 0.0

    @property
    def num_outputs(self) -> int:
        return len(self.prompts) * self.num_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one timed batch gave. `outputs` has `num_samples` lists of token ids per prompt, in the prompts' order.

    `cpu_seconds` is the time of all threads: on a machine that others use too, it says more than the wall clock.
    `split` has seconds of the engine's thread by part of a step, where the engine tells them.
    """

    outputs: list[list[int]]
    seconds: float
    cpu_seconds: float
    cached_tokens: int | None = None  # None: the engine keeps no count
    occupancy: float | None = None  # sequences per step over the most that may run at once
    split: dict[str, float] | None = None
    detail: dict[str, Any] = field(default_factory=dict)


class Clock:
    """Wall and CPU seconds of this process since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        wall, cpu = self._started
        return time.perf_counter() - wall, time.process_time() - cpu


Batch = Callable[[Work], Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What an engine is loaded from and may use. `max_outputs` is how many sequences the work has in all."""

    model_dir: Path
    gguf: Path
    threads: int
    longest: int  # tokens of the longest prompt and its answer
    options: dict[str, Any] = field(default_factory=dict)  # switches of the engine, for ablations
