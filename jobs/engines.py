"""The seam to the engine: what the jobs package needs of it, the real one, and how a factory is named."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, cast

from engine.cache.groups import LayerGroup
from engine.request import Completion, Request
from jobs.settings import Settings


class BlockUse(Protocol):
    """How many blocks of one layer group a job used; a block in use by k jobs counts 1/k."""

    @property
    def peak(self) -> float: ...
    @property
    def mean(self) -> float: ...


class Feed(Protocol):
    """The completions of one iterator of requests."""

    @property
    def done(self) -> bool: ...
    def poll(self, timeout: float) -> list[Completion]: ...
    def cancel(self) -> None: ...
    def __enter__(self) -> Feed: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class ServingEngine(Protocol):
    """The long-lived engine of one worker. All methods may be called from any thread."""

    @property
    def groups(self) -> tuple[LayerGroup, ...]: ...
    @property
    def alive(self) -> bool: ...
    @property
    def load(self) -> int: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def feed(self, requests: Iterable[Request]) -> Feed: ...
    def last_step_age(self) -> float: ...
    def block_use(self, job: str) -> Sequence[BlockUse]: ...


EngineFactory = Callable[[Path, Settings], ServingEngine]


def engine_factory(dotted: str) -> EngineFactory:
    """The factory named `package.module:function`. Raises ValueError when there is none."""
    module_name, _, name = dotted.partition(":")
    try:
        return cast(EngineFactory, getattr(importlib.import_module(module_name), name))
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"NIGHTMILL_ENGINE_FACTORY is {dotted!r}, which cannot be imported ({error}); use package.module:function"
        ) from error


def real_engine(model_dir: Path, settings: Settings) -> ServingEngine:
    """The hybrid-cache engine on this process's device. Imports torch; loads the weights."""
    from engine.build import build_engine
    from engine.config import EngineConfig

    config = EngineConfig(
        device=settings.device,
        dtype=settings.dtype,
        block_size=settings.block_size,
        max_batch_tokens=settings.max_batch_tokens,
        max_sequences=settings.max_sequences,
        cache_bytes=settings.cache_bytes,
        max_model_len=settings.max_model_len,
        allow_block_sharing=settings.block_sharing,
        use_prefix_sharing=settings.prefix_sharing,
        request_timeout_seconds=settings.request_timeout_seconds,
        threads=settings.threads,
        strict=settings.strict,
    )
    return cast(ServingEngine, build_engine(model_dir, config))
