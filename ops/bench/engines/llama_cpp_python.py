"""llama.cpp with 4-bit weights, all rows in one batch as its server runs them. Runs in an environment of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp as api

from ops.bench.work import Batch, Clock, Outcome, Setup, Work

BATCH_TOKENS = 512


class Session:
    """One model and context of `num_parallel` sequences. Greedy only."""

    def __init__(self, setup: Setup, num_parallel: int) -> None:
        self._quiet = api.llama_log_callback(lambda level, text, data: None)  # llama.cpp keeps no reference to it
        api.llama_log_set(self._quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(str(setup.gguf).encode(), api.llama_model_default_params())
        params = api.llama_context_default_params()
        params.n_ctx = setup.longest * num_parallel
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_seq_max = num_parallel
        params.n_threads = params.n_threads_batch = setup.threads
        params.no_perf = True
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp made no context of {params.n_ctx} tokens for {setup.gguf}")
        self._batch = api.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._sampler = api.llama_sampler_init_greedy()

    def complete(self, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
        """The prompts together: each is read in turn, then all grow by one token per step."""
        api.llama_memory_clear(api.llama_get_memory(self._context), True)
        outputs = [[self._read(row, prompt)] for row, prompt in enumerate(prompts)]
        for step in range(new_tokens - 1):
            entries = [
                (output[-1], len(prompt) + step, row, True)
                for row, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
            ]
            self._decode(entries)
            for row, output in enumerate(outputs):
                output.append(api.llama_sampler_sample(self._sampler, self._context, row))
        return outputs

    def _read(self, row: int, prompt: list[int]) -> int:
        entries = [(token, position, row, position == len(prompt) - 1) for position, token in enumerate(prompt)]
        for begin in range(0, len(entries), BATCH_TOKENS):
            self._decode(entries[begin : begin + BATCH_TOKENS])
        return int(api.llama_sampler_sample(self._sampler, self._context, -1))

    def _decode(self, entries: Sequence[tuple[int, int, int, bool]]) -> None:
        """Entries are (token, position, sequence, whether its logits are wanted)."""
        batch: Any = self._batch
        batch.n_tokens = len(entries)
        for index, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = wanted
        if code := api.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode failed with code {code}")


def llama_cpp(setup: Setup) -> Batch:
    """As many rows at once as `num_parallel` says; more follow in groups."""
    num_parallel = int(setup.options.get("num_parallel", 32))
    session = Session(setup, num_parallel)

    def complete(work: Work) -> Outcome:
        if work.temperature or work.num_samples > 1:
            raise SystemExit("llama.cpp is timed on greedy work only")
        outputs: list[list[int]] = []
        clock = Clock()
        for begin in range(0, len(work.prompts), num_parallel):
            outputs += session.complete(work.prompts[begin : begin + num_parallel], work.new_tokens)
        seconds, cpu_seconds = clock.read()
        detail = {"num_parallel": num_parallel}
        return Outcome(outputs=outputs, seconds=seconds, cpu_seconds=cpu_seconds, cached_tokens=0, detail=detail)

    return complete
