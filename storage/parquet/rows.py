"""The rows that a worker hands over, and the sealed files that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRow:
    """One finished (row, sample): the columns of the output, its run-dependent columns and what passes through.

    A value of `passed` is a Python value or, where that loses something (nanoseconds), the Arrow scalar of the plan.
    """

    custom_id: str
    row_index: int
    sample_index: int
    status: str  # storage.states.RowStatus
    output_text: str | None = None
    output_json: str | None = None
    reasoning_text: str | None = None
    tool_calls: str | None = None
    finish_reason: str | None = None
    stop_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    cumulative_logprob: float | None = None
    logprobs: Sequence[Mapping[str, Any]] | None = None  # token_id, logprob
    seed: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    planned_tokens: int | None = None
    cached_tokens: int | None = None
    computed_tokens: int | None = None
    limited_by: Sequence[Mapping[str, Any]] | None = None  # name, tokens
    forked_tokens: int | None = None
    recomputed_tokens: int | None = None
    preemptions: int | None = None
    engine_seconds: float | None = None
    groups: Sequence[Mapping[str, int]] | None = None  # one per layer group: allocated, shared, copied, ...
    attempts: int | None = None
    shard_id: int | None = None
    reused_from: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    passed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedFile:
    """A durable file of result rows. `key` is relative to OUT; the counts by status are known to its writer only."""

    key: str
    sha256: str
    rows: int
    succeeded: int = 0
    errored: int = 0
    expired: int = 0
    canceled: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LostRows:
    """Rows [row_lo, row_hi) of the plan's order that have no result of their own: given up, expired or canceled."""

    row_lo: int
    row_hi: int
    status: str
    code: str
    message: str
