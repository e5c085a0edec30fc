"""Rows of the frozen plan, ready to become requests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.request import Request, SamplingParams
from jobs.junctions import RowPlan, row_plans
from jobs.prompts import PromptEncoder
from jobs.sampling import Sampling
from jobs.text import make_stop_check
from storage.parquet.schema import PASS


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One row of a plan. A row with an `error_code` never reaches the engine; its `token_ids` may be empty.

    `sampling.seed` is the row's effective seed, which is `seed`. `passed` has the pass-through columns under their
    own names, as Arrow scalars.
    """

    row_index: int
    custom_id: str
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    stops: tuple[str, ...]
    seed: int
    error_code: str | None
    error_message: str | None
    passed: dict[str, Any]


def plan_rows(table: pa.Table, defaults: Sampling, max_model_len: int | None = None) -> Iterator[PlanRow]:
    """The rows of (a part of) a plan, in its order. `defaults`: `Sampling.from_spec(job.spec["sampling"])`.

    `max_tokens` is what the row asks for, or what the model's context leaves after the prompt, if that is less.
    """
    sampling_of = _row_sampling(defaults)
    for batch in table.to_batches(max_chunksize=256):  # Python values of a few rows at a time
        # Arrow scalars: a nanosecond timestamp and the like would lose something as a Python value.
        passed = {name.removeprefix(PASS): batch[name] for name in batch.schema.names if name.startswith(PASS)}
        own = batch.select([name for name in batch.schema.names if not name.startswith(PASS)])
        for index, row in enumerate(own.to_pylist()):
            sampling = sampling_of(row["sampling"])
            token_ids = tuple(row["prompt_token_ids"] or ())
            max_tokens = sampling.params.max_tokens
            if max_model_len is not None:
                max_tokens = min(max_tokens, max(1, max_model_len - len(token_ids)))
            yield PlanRow(
                row_index=row["row_index"],
                custom_id=row["custom_id"],
                token_ids=token_ids,
                sampling=replace(sampling.params, seed=row["seed"], max_tokens=max_tokens),
                stops=sampling.stop,
                seed=row["seed"],
                error_code=row["error_code"],
                error_message=row["error_message"],
                passed={name: column[index] for name, column in passed.items()},
            )


def unsealed_rows(
    table: pa.Table, defaults: Sampling, sealed: Set[tuple[int, int]], max_model_len: int | None = None
) -> Iterator[tuple[PlanRow, RowPlan]]:
    """The rows of `plan_rows` of which a sample is not among the sealed (row_index, sample_index), each with its plan.

    Plans are made at once, rows one by one. They are those of the rows that will run: what is sealed or has an error
    announces nothing and is not waited for.
    """
    is_open = _unsealed(table, defaults, sealed)
    plans = _plans(table, is_open & table["error_code"].is_null().to_numpy())
    every = zip(plan_rows(table, defaults, max_model_len), plans, is_open.tolist(), strict=True)
    return ((row, plan) for row, plan, is_left in every if is_left)


Counts = npt.NDArray[np.int64]


def open_outputs(table: pa.Table, defaults: Sampling, sealed: Set[tuple[int, int]]) -> Counts:
    """How many results of each row [rows] are not among the sealed (row_index, sample_index)."""
    sampling_of = _row_sampling(defaults)
    counts = []
    for batch in table.select(["row_index", "sampling", "error_code"]).to_batches(max_chunksize=256):
        for row in batch.to_pylist():
            num_samples = 1 if row["error_code"] else sampling_of(row["sampling"]).params.num_samples
            counts.append(sum((row["row_index"], sample) not in sealed for sample in range(num_samples)))
    return np.array(counts, dtype=np.int64)


def make_request(row: PlanRow, plan: RowPlan, request_id: str, job: str, encoder: PromptEncoder) -> Request:
    """The row as the engine gets it: without text."""
    texts, special = encoder.split_stops(row.stops)
    return Request(
        request_id=request_id,
        job=job,
        prompt=row.token_ids,
        sampling=replace(row.sampling, stop_token_ids=(*row.sampling.stop_token_ids, *special)),
        make_stop=make_stop_check(encoder, texts),
        junctions=plan.junctions,
        planned_tokens=plan.planned_tokens,
    )


def _row_sampling(defaults: Sampling) -> Callable[[str | None], Sampling]:
    @lru_cache(maxsize=1024)  # most rows of a job have few distinct overrides
    def sampling_of(overrides: str | None) -> Sampling:
        return defaults if overrides is None else defaults.overridden(json.loads(overrides))

    return sampling_of


def _unsealed(table: pa.Table, defaults: Sampling, sealed: Set[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    if not sealed:
        return np.ones(table.num_rows, dtype=np.bool_)
    return open_outputs(table, defaults, sealed) > 0


def _plans(table: pa.Table, runs: npt.NDArray[np.bool_]) -> list[RowPlan]:
    """One plan for each row of the table, the empty one for those that do not run. Token ids are not copied."""
    column = table["prompt_token_ids"]
    prompts = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    lengths = pc.list_value_length(prompts).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = prompts.offsets.to_numpy()[:-1].astype(np.int64)
    plans = [RowPlan()] * table.num_rows
    made = row_plans(prompts.values.to_numpy(), starts[runs], lengths[runs])
    for index, plan in zip(np.flatnonzero(runs).tolist(), made, strict=True):
        plans[index] = plan
    return plans
