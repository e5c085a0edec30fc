"""transformers' continuous batching, set up as well as a CPU allows: sdpa, and a cache with room for every row."""

from __future__ import annotations

import math
import os

from ops.bench.work import Batch, Clock, Outcome, Setup, Work

PAGE = 256  # transformers' default, in tokens
BATCH_TOKENS = 512


def continuous_batching(setup: Setup) -> Batch:
    """The sizes are set by hand: its own choice is a cache of 60 % of the memory with a mask of the same length."""
    import torch
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    torch.set_num_threads(setup.threads)
    set_verbosity_error()
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        setup.model_dir, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()

    def complete(work: Work) -> Outcome:
        pages = sum(math.ceil((len(prompt) + work.new_tokens) / PAGE) + 1 for prompt in work.prompts)
        config = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=math.ceil(pages * work.num_samples * 1.25) + 8,  # it holds 15 % back
            max_batch_tokens=BATCH_TOKENS,
            use_cuda_graph=False,
        )
        sampling = {"do_sample": True, "temperature": work.temperature} if work.temperature else {"do_sample": False}
        generation = GenerationConfig(
            max_new_tokens=work.new_tokens,
            num_return_sequences=work.num_samples,
            eos_token_id=-1,
            pad_token_id=0,
            **sampling,
        )
        clock = Clock()
        results = model.generate_batch(
            work.prompts, generation_config=generation, continuous_batching_config=config, warmup=False
        )
        seconds, cpu_seconds = clock.read()
        return Outcome(
            outputs=[list(result.generated_tokens) for result in results.values()],
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            detail={"num_blocks": config.num_blocks, "max_batch_tokens": config.max_batch_tokens},
        )

    return complete


def continuous_batching_gqa(setup: Setup) -> Batch:
    """The same without its copies of keys and values for each query head. transformers reads this at import."""
    os.environ["TRANSFORMERS_SDPA_FORCE_GQA"] = "1"
    return continuous_batching(setup)
