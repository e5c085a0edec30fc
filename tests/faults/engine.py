"""The fake engine that leaves a list of what it made, one line per result, for a checker that counts waste.

FAKE_ENGINE_TRACE   the file; a line is `<shard>.<epoch>.<row> <sample>`
FAKE_ENGINE_EATS    megabytes of memory that each result costs, for ever
REAL_ENGINE_PACE    seconds that each step of the real engine takes longer, so that a fault finds it at work
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, cast

from engine.feed import Feed
from engine.loop import Engine
from engine.request import Completion, Request, SamplingParams
from engine.step import Sampled, Step
from jobs.engines import ServingEngine, real_engine
from jobs.settings import Settings
from tests.fakes import SPACE, FakeEngine, fake_engine, fake_ids


def traced_engine(model_dir: Path, settings: Settings) -> FakeEngine:
    """NIGHTMILL_ENGINE_FACTORY=tests.faults.engine:traced_engine"""
    engine = fake_engine(model_dir, settings)
    trace = os.open(os.environ["FAKE_ENGINE_TRACE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    complete = engine._completion
    megabytes = int(os.environ.get("FAKE_ENGINE_EATS", "0"))
    eaten: list[bytearray] = []

    def traced(request: Request, sample_index: int) -> Completion:
        os.write(trace, f"{request.request_id} {sample_index}\n".encode())
        if megabytes:
            eaten.append(bytearray(b"x" * (megabytes << 20)))
        return complete(request, sample_index)

    engine._completion = traced  # type: ignore[method-assign]
    return engine


class TracedFeed:
    """A feed that leaves a list of what it delivers: a line is `<shard>.<epoch>.<row> <sample> <token ids>`."""

    def __init__(self, feed: Feed, trace: Path) -> None:
        self._feed = feed
        self._trace = trace

    @property
    def done(self) -> bool:
        return self._feed.done

    def poll(self, timeout: float) -> list[Completion]:
        completions = self._feed.poll(timeout)
        with self._trace.open("a") as trace:
            for each in completions:
                if each.finish_reason != "abort":
                    trace.write(f"{each.request_id} {each.sample_index} {json.dumps(each.token_ids)}\n")
        return completions

    def cancel(self) -> None:
        self._feed.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()


def traced_real_engine(model_dir: Path, settings: Settings) -> ServingEngine:
    """NIGHTMILL_ENGINE_FACTORY=tests.faults.engine:traced_real_engine; the list is FAKE_ENGINE_TRACE as well."""
    engine = cast(Engine, real_engine(model_dir, settings))
    feed, trace = engine.feed, Path(os.environ["FAKE_ENGINE_TRACE"])
    run, pace = engine._runner.run, float(os.environ.get("REAL_ENGINE_PACE", "0"))

    def paced(step: Step) -> list[Sampled]:
        time.sleep(pace)
        return run(step)

    engine._runner.run = paced  # type: ignore[method-assign]
    engine.feed = lambda requests: TracedFeed(feed(requests), trace)  # type: ignore[method-assign, assignment, arg-type, return-value]
    return engine


def fake_text(row: dict[str, Any], max_tokens: int) -> str:
    """What the fake engine makes of a data row, whose prompt is printable ASCII."""
    prompt = [SPACE if letter == " " else ord(letter) - 33 for letter in row["prompt"]]
    ids = fake_ids(prompt, SamplingParams(max_tokens=max_tokens, seed=row["seed"]), row["sample_index"])
    return "".join(chr(97 + token - 64) for token in ids)


def deaf_engine(model_dir: Path, settings: Settings) -> FakeEngine:
    """NIGHTMILL_ENGINE_FACTORY=tests.faults.engine:deaf_engine; SIGALRM hangs the main thread, where events are."""
    signal.signal(signal.SIGALRM, lambda *_: threading.Event().wait())
    return traced_engine(model_dir, settings)


def lingering_engine(model_dir: Path, settings: Settings) -> FakeEngine:
    """NIGHTMILL_ENGINE_FACTORY=tests.faults.engine:lingering_engine; it is in a step that does not end."""
    engine = traced_engine(model_dir, settings)
    engine.stop = threading.Event().wait  # type: ignore[method-assign, assignment]
    return engine


def raising_engine(model_dir: Path, settings: Settings) -> FakeEngine:
    """NIGHTMILL_ENGINE_FACTORY=tests.faults.engine:raising_engine; in the task's own thread, a few times in turn."""
    engine = fake_engine(model_dir, settings)
    errors: list[BaseException] = [SystemExit(3), MemoryError(), KeyboardInterrupt(), SystemExit(4)]
    feed = engine.feed

    def raising(requests: Iterable[Request]) -> Feed:
        if errors:
            raise errors.pop(0)
        return feed(requests)

    engine.feed = raising  # type: ignore[method-assign]
    return engine
