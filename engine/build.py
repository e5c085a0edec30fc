"""The composition root: a model's source and the options in, an engine that is ready to start out."""

from __future__ import annotations

from pathlib import Path

from engine.config import EngineConfig
from engine.loop import Engine
from engine.model.load import load_model
from engine.model.runner import ModelRunner


def build_engine(source: str | Path, config: EngineConfig) -> Engine:
    """Load the model and put scheduler, memory and runner together. The engine is not started.

    Raises ModelRefused or ConfigError.
    """
    loaded = load_model(source, config)
    resolved = loaded.resolve(config)
    runner = ModelRunner(loaded, resolved)
    return Engine(runner, loaded.groups, resolved, loaded.eos_token_ids, loaded.max_model_len, loaded.vocab_size)
