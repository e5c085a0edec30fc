"""The composition root: model, memory, runner, scheduler and cache become an engine. Imports torch and transformers."""

from __future__ import annotations

from pathlib import Path

from engine.config import EngineConfig
from engine.loop import Engine
from engine.model.load import load_model
from engine.model.runner import ModelRunner


def assemble(source: str | Path, config: EngineConfig) -> Engine:
    """As `build_engine`, in the calling thread."""
    loaded = load_model(source, config)
    resolved = loaded.resolve(config)
    runner = ModelRunner(loaded, resolved)
    return Engine(runner, loaded.groups, resolved, loaded.eos_token_ids, loaded.max_model_len, loaded.vocab_size)
