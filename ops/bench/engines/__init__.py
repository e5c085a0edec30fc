"""The engines that a cell can time, by name, and the environment that each runs in.

Each loads a model outside the clock and then completes one batch inside it. Only the one that runs is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from ops.bench.work import Batch, Setup

Environment = Literal["ours", "vllm", "llama-cpp"]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """`module` has `function(setup)`, which loads the model and returns what completes a batch."""

    module: str
    function: str
    environment: Environment = "ours"
    precision: str = "float32"

    def load(self, setup: Setup) -> Batch:
        function = getattr(import_module(f"ops.bench.engines.{self.module}"), self.function)
        batch: Batch = function(setup)
        return batch


OURS = "nightmill"
ENGINES: dict[str, EngineSpec] = {
    OURS: EngineSpec("ours", "nightmill"),
    "transformers-cb": EngineSpec("transformers_cb", "continuous_batching"),
    "transformers-cb-gqa": EngineSpec("transformers_cb", "continuous_batching_gqa"),
    "transformers-generate": EngineSpec("transformers_generate", "static_generate"),
    "vllm": EngineSpec("vllm_cpu", "vllm", "vllm"),
    "llama.cpp": EngineSpec("llama_cpp_python", "llama_cpp", "llama-cpp", "Q4_K_M"),
}
