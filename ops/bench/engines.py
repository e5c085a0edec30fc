"""The engines that a cell can time: each loads a model outside the clock and then completes one batch inside it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one timed batch gave. `outputs` has one list of token ids per prompt, in their order.

    `cpu_seconds` is the time of all threads: on a machine that others use too, it says more than the wall clock.
    """

    outputs: list[list[int]]
    seconds: float
    cpu_seconds: float
    cached_tokens: int
    detail: dict[str, Any]


class Clock:
    """Wall and CPU seconds of this process since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        wall, cpu = self._started
        return time.perf_counter() - wall, time.process_time() - cpu


Batch = Callable[[list[list[int]], int], Outcome]
"""Completes prompts with a fixed number of new tokens each, greedily, EOS ignored."""


STEP_SPLIT = ("num_steps", "step_tokens", "schedule_seconds", "run_seconds", "update_seconds", "preemptions")


def nightmill(model_dir: Path, threads: int) -> Batch:
    """Our engine as a worker runs it, without the queue and the files around it."""
    from engine.build import build_engine
    from engine.config import EngineConfig
    from engine.request import Completion, Request, SamplingParams

    engine = build_engine(model_dir, EngineConfig(threads=threads))
    engine.start()

    def complete(prompts: list[list[int]], new_tokens: int) -> Outcome:
        sampling = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
        requests = [
            Request(request_id=str(row), job="bench", prompt=prompt, sampling=sampling)
            for row, prompt in enumerate(prompts)
        ]
        done: dict[str, Completion] = {}
        before = engine.totals()
        clock = Clock()
        with engine.feed(requests) as feed:
            done.update((completion.request_id, completion) for completion in feed)
        seconds, cpu_seconds = clock.read()
        if failed := [completion for completion in done.values() if completion.finish_reason == "error"]:
            raise RuntimeError(f"row {failed[0].request_id} failed: {failed[0].error_message}")
        after = engine.totals()
        return Outcome(
            outputs=[list(done[request.request_id].token_ids) for request in requests],
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            cached_tokens=sum(completion.counters.cached_tokens for completion in done.values()),
            detail={name: round(getattr(after, name) - getattr(before, name), 3) for name in STEP_SPLIT},
        )

    return complete


PAGE = 256  # transformers' default, in tokens
BATCH_TOKENS = 512


def transformers_cb(model_dir: Path, threads: int) -> Batch:
    """transformers' continuous batching, set up as well as a CPU allows: sdpa, and a cache with room for every row.

    The sizes are set by hand: its own choice is a cache of 60 % of the memory with a mask of the same length.
    """
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    torch.set_num_threads(threads)
    set_verbosity_error()
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa").eval()

    def complete(prompts: list[list[int]], new_tokens: int) -> Outcome:
        pages = sum(math.ceil((len(prompt) + new_tokens) / PAGE) + 1 for prompt in prompts)
        config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=math.ceil(pages * 1.25) + 8,  # it holds 15 % back
            max_batch_tokens=BATCH_TOKENS,
            use_cuda_graph=False,
        )
        generation = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)
        clock = Clock()
        results = model.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=config, warmup=False
        )
        seconds, cpu_seconds = clock.read()
        outputs = [list(result.generated_tokens) for result in results.values()]
        if len(outputs) != len(prompts) or any(len(output) != new_tokens for output in outputs):
            raise RuntimeError(f"only {len(outputs)} of {len(prompts)} rows came back whole; see the log above")
        return Outcome(
            outputs=outputs,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            cached_tokens=0,  # it keeps no count
            detail={"num_blocks": config.num_blocks, "max_batch_tokens": config.max_batch_tokens},
        )

    return complete


def transformers_cb_gqa(model_dir: Path, threads: int) -> Batch:
    """The same without its copies of keys and values for each query head. transformers reads this at import."""
    os.environ["TRANSFORMERS_SDPA_FORCE_GQA"] = "1"
    return transformers_cb(model_dir, threads)


ENGINES: dict[str, Callable[[Path, int], Batch]] = {
    "nightmill": nightmill,
    "transformers-cb": transformers_cb,
    "transformers-cb-gqa": transformers_cb_gqa,
}
