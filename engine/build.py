"""A model's source and the options in, an engine that is ready to start out.

Python's garbage collector rests meanwhile: what is imported and loaded stays, and a process that imports torch and
transformers spends a quarter of that time on walking through them.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config import EngineConfig
from engine.heap import keep_freed_memory

if TYPE_CHECKING:
    from engine.loop import Engine


def build_engine(source: str | Path, config: EngineConfig) -> Engine:
    """Load the model and put scheduler, memory and runner together. The engine is not started.

    Raises ModelRefused or ConfigError.
    """
    if config.kept_heap:
        keep_freed_memory()
    gc.unfreeze()
    if "torch" in sys.modules:  # else there was no engine, and a collection takes a third of a second
        gc.collect()  # what is left of an engine before this one makes room: its layers are in cycles
    if not config.frozen_objects:
        return _load(source, config)
    with _no_collections():
        import engine.assemble  # noqa: F401 - here, so that the collector rests

        gc.freeze()  # the collection below has only to look at what was loaded
        built = _load(source, config)
        gc.collect()
        gc.freeze()
    return built


def _load(source: str | Path, config: EngineConfig) -> Engine:
    """In a thread that ends: OpenMP keeps a pool of threads for each thread that ever computed. Were there one for this
    thread beside the engine's, they would be more than the cores, and then they sleep between matrix products."""
    from engine.assemble import assemble

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="load") as loader:
        return loader.submit(assemble, source, config).result()


@contextmanager
def _no_collections() -> Iterator[None]:
    """But for those that are asked for."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
