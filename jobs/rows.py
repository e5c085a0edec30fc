"""From completions to result rows, and from result rows to their sum: what SQL records is what the files say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from engine.cache.groups import LayerGroup
from engine.request import Completion, GroupCounters, add_limits
from jobs.engines import BlockUse
from jobs.planrows import PlanRow
from jobs.report import largest_first
from jobs.text import Decoder, finish_text
from storage.parquet.rows import ResultRow
from storage.records import GroupStats, RunStats
from storage.states import RowStatus

GROUP_NAMES = tuple(field.name for field in fields(GroupCounters))
COUNTERS = (
    *("planned_tokens", "cached_tokens", "computed_tokens", "completion_tokens", "forked_tokens"),
    *("recomputed_tokens", "preemptions", "engine_seconds"),
)
"""Columns of a row that add up to fields of the same name in RunStats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowMaker:
    """Makes the rows of one attempt."""

    decoder: Decoder
    eos_token_ids: frozenset[int]
    shard_id: int
    attempt: int
    started_at: datetime

    def finished(self, row: PlanRow, completion: Completion) -> ResultRow:
        """One finished sequence; finish_reason `error` makes an errored row."""
        counters = completion.counters
        text = finish_reason = stop_reason = error_code = error_message = logprob = None
        if completion.finish_reason == "error":
            error_code = completion.error_code or "internal"
            error_message = completion.error_message or "the engine gave no reason"
        else:
            text, stop_reason = finish_text(self.decoder, completion.token_ids, row.stops)
            stop_reason = stop_reason or self._stop_token(completion.stop_token_id)
            finish_reason, logprob = completion.finish_reason, completion.cumulative_logprob
        return ResultRow(
            custom_id=row.custom_id,
            row_index=row.row_index,
            sample_index=completion.sample_index,
            status=RowStatus.SUCCEEDED if error_code is None else RowStatus.ERRORED,
            output_text=text,
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            prompt_tokens=len(row.token_ids),
            completion_tokens=counters.completion_tokens,
            cumulative_logprob=logprob,
            seed=row.seed,
            error_code=error_code,
            error_message=error_message,
            planned_tokens=counters.planned_tokens,
            cached_tokens=counters.cached_tokens,
            computed_tokens=counters.computed_tokens,
            limited_by=[{"name": name, "tokens": tokens} for name, tokens in largest_first(counters.limited_by)],
            forked_tokens=counters.forked_tokens,
            recomputed_tokens=counters.recomputed_tokens,
            preemptions=counters.preemptions,
            engine_seconds=counters.engine_seconds,
            groups=[{name: getattr(group, name) for name in GROUP_NAMES} for group in counters.groups],
            attempts=self.attempt,
            shard_id=self.shard_id,
            started_at=self.started_at,
            finished_at=datetime.now(UTC),
            passed=row.passed,
        )

    def failed(self, row: PlanRow, sample_index: int, code: str, message: str) -> ResultRow:
        """A row that never reached the engine, or on whose result our own code fails."""
        return ResultRow(
            custom_id=row.custom_id,
            row_index=row.row_index,
            sample_index=sample_index,
            status=RowStatus.ERRORED,
            seed=row.seed,
            error_code=code,
            error_message=message,
            attempts=self.attempt,
            shard_id=self.shard_id,
            started_at=self.started_at,
            finished_at=datetime.now(UTC),
            passed=row.passed,
        )

    def _stop_token(self, token_id: int | None) -> str | None:
        """A stop token is a reason to tell; the model's own end of text is none."""
        return None if token_id is None or token_id in self.eos_token_ids else str(token_id)


def sum_rows(rows: Sequence[ResultRow], groups: Sequence[LayerGroup]) -> RunStats:
    """The counters of these rows, per layer group as well."""
    totals: dict[str, Any] = {name: sum(getattr(row, name) or 0 for row in rows) for name in COUNTERS}
    return RunStats(
        rows=len(rows),
        prompt_tokens=totals["cached_tokens"] + totals["computed_tokens"],
        groups=tuple(_sum_group(stats, rows) for stats in group_stats(groups)),
        limited_by=add_limits(
            *(tuple((each["name"], each["tokens"]) for each in row.limited_by or ()) for row in rows)
        ),
        **totals,
    )


def merge(first: RunStats, second: RunStats) -> RunStats:
    """The plain counters of both; layer groups are those of the first."""
    names = ("rows", "prompt_tokens", *COUNTERS)
    limited_by = add_limits(first.limited_by, second.limited_by)
    return replace(
        first, limited_by=limited_by, **{name: getattr(first, name) + getattr(second, name) for name in names}
    )


def group_stats(groups: Sequence[LayerGroup]) -> tuple[GroupStats, ...]:
    """The groups of an engine with all counters at zero."""
    return tuple(
        GroupStats(
            index=group.index,
            kind=group.kind,
            layers=len(group.layers),
            block_size=group.block_size,
            window=group.window,
        )
        for group in groups
    )


def with_use(stats: RunStats, use: Sequence[BlockUse]) -> RunStats:
    """The same, with the job's peak and mean use of blocks so far, per layer group."""
    groups = [
        replace(group, blocks_peak=used.peak, blocks_mean=used.mean)
        for group, used in zip(stats.groups, use, strict=False)
    ]
    return replace(stats, groups=(*groups, *stats.groups[len(groups) :]))


def _sum_group(stats: GroupStats, rows: Sequence[ResultRow]) -> GroupStats:
    counted = [row.groups[stats.index] for row in rows if row.groups]
    totals: dict[str, Any] = {f"blocks_{name}": sum(each[name] for each in counted) for name in GROUP_NAMES}
    return replace(stats, **totals)
