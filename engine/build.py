"""The composition root: a model's source and the options in, an engine that is ready to start out."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.config import EngineConfig
from engine.heap import keep_freed_memory
from engine.loop import Engine
from engine.model.load import load_model
from engine.model.runner import ModelRunner


def build_engine(source: str | Path, config: EngineConfig) -> Engine:
    """Load the model and put scheduler, memory and runner together. The engine is not started.

    Raises ModelRefused or ConfigError.
    """
    if config.kept_heap:
        keep_freed_memory()
    gc.unfreeze()  # what is left of an engine before this one makes room: its layers are in cycles
    gc.collect()
    # In a thread that ends: OpenMP keeps a pool of threads for each thread that ever computed. Were there one for this
    # thread beside the engine's, they would be more than the cores, and then they sleep between matrix products.
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="load") as loader:
        engine = loader.submit(_build, source, config).result()
    if config.frozen_objects:
        gc.collect()
        gc.freeze()
    return engine


def _build(source: str | Path, config: EngineConfig) -> Engine:
    loaded = load_model(source, config)
    resolved = loaded.resolve(config)
    runner = ModelRunner(loaded, resolved)
    return Engine(runner, loaded.groups, resolved, loaded.eos_token_ids, loaded.max_model_len, loaded.vocab_size)
