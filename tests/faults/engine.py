"""The fake engine that leaves a list of what it made, one line per result, for a checker that counts waste.

FAKE_ENGINE_TRACE   the file; a line is `<shard>.<epoch>.<row> <sample>`
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.feed import Feed
from engine.request import Completion, Request, SamplingParams
from jobs.settings import Settings
from tests.fakes import SPACE, FakeEngine, fake_engine, fake_ids


def traced_engine(model_dir: Path, settings: Settings) -> FakeEngine:
    """NIGHTMILL_ENGINE_FACTORY=tests.faults.engine:traced_engine"""
    engine = fake_engine(model_dir, settings)
    trace = os.open(os.environ["FAKE_ENGINE_TRACE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    complete = engine._completion

    def traced(request: Request, sample_index: int) -> Completion:
        os.write(trace, f"{request.request_id} {sample_index}\n".encode())
        return complete(request, sample_index)

    engine._completion = traced  # type: ignore[method-assign]
    return engine


def fake_text(row: dict[str, Any], max_tokens: int) -> str:
    """What the fake engine makes of a data row, whose prompt is printable ASCII."""
    prompt = [SPACE if letter == " " else ord(letter) - 33 for letter in row["prompt"]]
    ids = fake_ids(prompt, SamplingParams(max_tokens=max_tokens, seed=row["seed"]), row["sample_index"])
    return "".join(chr(97 + token - 64) for token in ids)


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
