"""vLLM's CPU build, with what is fastest for it on a small machine. Runs in an environment of its own."""

from __future__ import annotations

import os
from typing import Any

from ops.bench.work import Batch, Clock, Outcome, Setup, Work

KV_GIB = 4


def vllm(setup: Setup) -> Batch:
    """One process: its engine process would share the cores with its client. No seeds: with them it crashes."""
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": setup.options.get("bind", "nobind"),
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(setup.options.get("multiprocessing", 0)),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "OMP_NUM_THREADS": str(setup.threads),
        "HF_HUB_OFFLINE": "1",
        # What it compiles ahead of time it cannot load again on a CPU, so each process would compile for minutes.
        "VLLM_USE_AOT_COMPILE": "0",
    }
    from vllm import LLM, SamplingParams

    settings: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": setup.longest,
        "max_num_seqs": setup.options.get("max_num_seqs", 64),
        "max_num_batched_tokens": setup.options.get("max_num_batched_tokens", 2048),
        "enable_prefix_caching": True,
        "enforce_eager": setup.options.get("enforce_eager", False),
    }
    llm = LLM(str(setup.model_dir), disable_log_stats=True, **settings)

    def complete(work: Work) -> Outcome:
        sampling = SamplingParams(
            max_tokens=work.new_tokens, ignore_eos=True, n=work.num_samples, temperature=work.temperature
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in work.prompts]
        clock = Clock()
        results = llm.generate(prompts, sampling, use_tqdm=False)
        seconds, cpu_seconds = clock.read()
        return Outcome(
            outputs=[list(answer.token_ids) for result in results for answer in result.outputs],
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            cached_tokens=sum(result.num_cached_tokens or 0 for result in results),
            detail=settings,
        )

    return complete
