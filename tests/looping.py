"""The real loop and scheduler over a runner without a model: each token is a letter that depends on the last one."""

from __future__ import annotations

import time
from pathlib import Path

from engine.config import EngineConfig
from engine.loop import Engine
from engine.step import Sampled, Step
from jobs.settings import Settings
from tests.fakes import EOS, FakeEngine

STEP_SECONDS = 0.005


class LetterRunner:
    """Ends a sequence after eight letters, unless its prompt begins with an exclamation mark."""

    def run(self, step: Step) -> list[Sampled]:
        time.sleep(STEP_SECONDS)
        return [
            Sampled(chunk.sequence_id, self._token(chunk.token_ids, chunk.prompt_len), -0.5)
            for chunk in step.chunks
            for _ in chunk.sample_indices
        ]

    def forget(self, sequence_id: int) -> None:
        pass

    def _token(self, tokens: object, prompt_len: int) -> int:
        assert isinstance(tokens, list)
        if tokens[0] != 0 and len(tokens) - prompt_len >= 8:
            return EOS
        return 64 + (tokens[-1] + 1) % 26


def looping_engine(model_dir: Path, settings: Settings) -> Engine:
    """NIGHTMILL_ENGINE_FACTORY=tests.looping:looping_engine"""
    config = EngineConfig(
        num_blocks=2000,
        max_sequences=settings.max_sequences,
        request_timeout_seconds=settings.request_timeout_seconds,
    )
    return Engine(LetterRunner(), FakeEngine.groups, config, frozenset({EOS}), max_model_len=4096)
