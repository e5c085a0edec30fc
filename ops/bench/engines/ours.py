"""Our engine as a worker runs it, without the queue and the files around it."""

from __future__ import annotations

import time

import numpy as np

from engine.build import build_engine
from engine.config import EngineConfig
from engine.loop import Engine
from engine.model.project import ProjectedTiles
from engine.model.runner import ModelRunner, PagedLayers
from engine.request import Completion, Request, SamplingParams
from engine.stats import EngineTotals
from jobs.junctions import row_plans
from ops.bench.split import Stopwatch, occupancy, split_of
from ops.bench.work import Batch, Clock, Outcome, Setup, Work

JOB = "bench"
FLOAT_BYTES = 4
COUNTS = ("num_steps", "step_tokens", "preemptions", "recomputed_tokens", "forked_tokens")


def nightmill(setup: Setup) -> Batch:
    """Every row has its own seed, as rows of a job do."""
    stopwatch = Stopwatch()
    stopwatch.attach(ModelRunner, PagedLayers, ProjectedTiles)
    config = EngineConfig(threads=setup.threads, **setup.options)
    engine = build_engine(setup.model_dir, config)
    engine.start()

    def complete(work: Work) -> Outcome:
        requests = _requests(work)
        done: dict[tuple[str, int], Completion] = {}
        ends: list[float] = []
        before = engine.totals()
        stopwatch.reset()
        clock = Clock()
        with engine.feed(requests) as feed:
            for completion in feed:
                ends.append(time.perf_counter())
                done[completion.request_id, completion.sample_index] = completion
        seconds, cpu_seconds = clock.read()
        if failed := [completion for completion in done.values() if completion.finish_reason == "error"]:
            raise RuntimeError(f"row {failed[0].request_id} failed: {failed[0].error_message}")
        return Outcome(
            outputs=[
                list(done[request.request_id, sample].token_ids)
                for request in requests
                for sample in range(work.num_samples)
            ],
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            cached_tokens=sum(completion.counters.cached_tokens for completion in done.values()),
            occupancy=occupancy(stopwatch.steps, ends, min(config.max_sequences, work.num_outputs)),
            split=_split(stopwatch, before, engine.totals(), seconds),
            detail=_counts(before, engine.totals())
            | {
                "max_sequences": config.max_sequences,
                "occupancy_95": occupancy(stopwatch.steps, ends, min(config.max_sequences, work.num_outputs), 0.95),
                "kv_peak_mib": _kv_peak_mib(engine),
            },
        )

    return complete


def _counts(before: EngineTotals, after: EngineTotals) -> dict[str, int]:
    return {name: getattr(after, name) - getattr(before, name) for name in COUNTS}


def _kv_peak_mib(engine: Engine) -> float:
    """Keys and values that were in use at once, at most: the pool itself is as large as memory allows."""
    used = zip(engine.groups, engine.block_use(JOB), strict=True)
    return round(sum(use.peak * group.block_bytes(FLOAT_BYTES) for group, use in used) / 2**20, 1)


def _split(stopwatch: Stopwatch, before: EngineTotals, after: EngineTotals, seconds: float) -> dict[str, float]:
    schedule, run, update = (
        getattr(after, name) - getattr(before, name) for name in ("schedule_seconds", "run_seconds", "update_seconds")
    )
    return split_of(seconds, schedule, run, update, stopwatch.read())


def _requests(work: Work) -> list[Request]:
    """In the given order, with what a shard's rows know of each other: states are kept where prompts part."""
    lengths = np.array([len(prompt) for prompt in work.prompts])
    plans = row_plans(np.concatenate(work.prompts), np.cumsum(lengths) - lengths, lengths)
    return [
        Request(
            request_id=str(row),
            job=JOB,
            prompt=prompt,
            sampling=SamplingParams(
                max_tokens=work.new_tokens,
                ignore_eos=True,
                num_samples=work.num_samples,
                temperature=work.temperature,
                seed=row,
            ),
            junctions=plan.junctions,
            planned_tokens=plan.planned_tokens,
        )
        for row, (prompt, plan) in enumerate(zip(work.prompts, plans, strict=True))
    ]
