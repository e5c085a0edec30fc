"""Where the time of a step goes: our engine's own methods, timed from outside while a cell runs.

| part | is |
|---|---|
| schedule, update | the scheduler before and after the run, as the engine counts them itself |
| inputs | from plain numbers to tensors, copies of blocks, plans of the attention |
| forward | the model and its output projection, without attention; greedy choices that are made with it |
| attention | the attention calls, writing this step's keys and values included |
| sampling | from logits to tokens |
| idle | the rest of the wall clock: no step ran |
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PARTS = ("schedule", "inputs", "forward", "attention", "sampling", "update", "idle")


@dataclass(frozen=True, slots=True)
class RunSeconds:
    """Sums over the steps: inside the whole forward call, its attention, the whole sampling call, its logits."""

    forward: float
    attention: float
    sample: float
    logits: float


def split_of(wall: float, schedule: float, run: float, update: float, inside: RunSeconds) -> dict[str, float]:
    """Seconds by part; they add up to `wall`."""
    parts = {
        "schedule": schedule,
        "inputs": run - inside.forward - inside.sample,
        "forward": inside.forward - inside.attention + inside.logits,
        "attention": inside.attention,
        "sampling": inside.sample - inside.logits,
        "update": update,
        "idle": wall - schedule - run - update,
    }
    return {name: round(parts[name], 4) for name in PARTS}


@dataclass(slots=True)
class Stopwatch:
    """The running sums behind `RunSeconds`, and each step's end and number of sequences."""

    sums: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("forward", "attention", "sample", "logits"), 0.0)
    )
    steps: list[tuple[float, int]] = field(default_factory=list)

    def reset(self) -> None:
        self.sums = dict.fromkeys(self.sums, 0.0)
        self.steps = []

    def read(self) -> RunSeconds:
        return RunSeconds(**self.sums)

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.sums[name] += time.perf_counter() - begin

    def attach(self, runner: type, layers: type, tiles: type) -> None:
        """Time these classes' methods from now on: the process is the cell's own, so nothing is put back."""
        for owner, method, wrapped in (
            (runner, "_forward", self._timed_forward),
            (layers, "inline", lambda own: self._timed("attention", own)),
            (layers, "attend", lambda own: self._timed("attention", own)),
            (runner, "_sample", lambda own: self._timed("sample", own)),
            (tiles, "pick", lambda own: self._timed("logits", own)),
            (tiles, "__call__", self._timed_tiles),
            (runner, "run", self._noting_steps),
        ):
            setattr(owner, method, wrapped(getattr(owner, method)))

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            with self.timing(name):
                return method(*arguments, **keywords)

        return timed

    def _timed_forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Layers that are one call of the kernel tell by themselves what attention took in them."""

        @functools.wraps(forward)
        def timed(runner: Any, *arguments: Any) -> Any:
            before = runner.inline_seconds()
            with self.timing("forward"):
                done = forward(runner, *arguments)
            self.sums["attention"] += runner.inline_seconds() - before
            return done

        return timed

    def _timed_tiles(self, project: Callable[..., Any]) -> Callable[..., Any]:
        """The output projection runs while its tiles are asked for: that time is not the sampler's."""

        @functools.wraps(project)
        def timed_tiles(*arguments: Any) -> Iterator[Any]:
            produced = iter(project(*arguments))
            while True:
                with self.timing("logits"):
                    tile = next(produced, None)
                if tile is None:
                    return
                yield tile

        return timed_tiles

    def _noting_steps(self, run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def noting(owner: Any, step: Any) -> Any:
            sampled = run(owner, step)
            self.steps.append((time.perf_counter(), len(step.chunks)))
            return sampled

        return noting


def occupancy(steps: list[tuple[float, int]], ends: list[float], most: int, share: float = 1.0) -> float:
    """Mean sequences per step over `most`, in the steps until `share` of the outputs were there (`ends`: when each)."""
    last = end_of(ends, share)
    counts = [count for end, count in steps if end <= last]
    return round(sum(counts) / (len(counts) * most), 4) if counts else 0.0


def occupancy_by_time(steps: list[tuple[float, float, int]], ends: list[float], most: int, share: float = 1.0) -> float:
    """The same with each step (begin, end, sequences) weighted by its seconds, and none while no step ran."""
    last = end_of(ends, share)
    until = [(begin, end, count) for begin, end, count in steps if end <= last]
    if not until:
        return 0.0
    busy = sum((end - begin) * count for begin, end, count in until)
    return round(busy / ((until[-1][1] - until[0][0]) * most), 4)


def end_of(ends: list[float], share: float) -> float:
    """When this share of the outputs were there."""
    return sorted(ends)[max(0, round(share * len(ends)) - 1)]
