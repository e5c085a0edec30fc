"""Rows of the frozen plan, ready to become requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pyarrow as pa

from engine.request import Request, SamplingParams
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

    @lru_cache(maxsize=1024)  # most rows of a job have few distinct overrides
    def sampling_of(overrides: str | None) -> Sampling:
        return defaults if overrides is None else defaults.overridden(json.loads(overrides))

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


def make_request(row: PlanRow, request_id: str, job: str, encoder: PromptEncoder) -> Request:
    """The row as the engine gets it: without text."""
    texts, special = encoder.split_stops(row.stops)
    return Request(
        request_id=request_id,
        job=job,
        prompt=row.token_ids,
        sampling=replace(row.sampling, stop_token_ids=(*row.sampling.stop_token_ids, *special)),
        make_stop=make_stop_check(encoder, texts),
    )
