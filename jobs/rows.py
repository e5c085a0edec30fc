"""From completions to result rows, and from result rows to their sum: what SQL records is what the files say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from engine.cache.groups import LayerGroup
from engine.request import Completion
from jobs.engines import BlockUse
from jobs.planrows import PlanRow
from jobs.text import Decoder, finish_text
from storage.parquet.rows import ResultRow
from storage.records import GroupStats, RunStats
from storage.states import RowStatus


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
        result = replace(
            self._base(row, completion.sample_index),
            prompt_tokens=len(row.token_ids),
            completion_tokens=counters.completion_tokens,
            cached_tokens=counters.cached_tokens,
            computed_tokens=counters.computed_tokens,
            forked_tokens=counters.forked_tokens,
            recomputed_tokens=counters.recomputed_tokens,
            preemptions=counters.preemptions,
            engine_seconds=counters.engine_seconds,
            groups=[asdict(group) for group in counters.groups],
        )
        if completion.finish_reason == "error":
            return replace(
                result,
                status=RowStatus.ERRORED,
                error_code=completion.error_code or "internal",
                error_message=completion.error_message or "the engine gave no reason",
            )
        text, stop_reason = finish_text(self.decoder, completion.token_ids, row.stops)
        if stop_reason is None and completion.stop_token_id not in self.eos_token_ids:
            stop_reason = None if completion.stop_token_id is None else str(completion.stop_token_id)
        return replace(
            result,
            output_text=text,
            finish_reason=completion.finish_reason,
            stop_reason=stop_reason,
            cumulative_logprob=completion.cumulative_logprob,
        )

    def refused(self, row: PlanRow) -> ResultRow:
        """A row that submit found to be wrong: it never reaches the engine and has one result, whatever its `n`."""
        return replace(
            self._base(row, 0),
            status=RowStatus.ERRORED,
            error_code=row.error_code,
            error_message=row.error_message,
        )

    def _base(self, row: PlanRow, sample_index: int) -> ResultRow:
        return ResultRow(
            custom_id=row.custom_id,
            row_index=row.row_index,
            sample_index=sample_index,
            status=RowStatus.SUCCEEDED,
            seed=row.seed,
            attempts=self.attempt,
            shard_id=self.shard_id,
            started_at=self.started_at,
            finished_at=datetime.now(UTC),
            passed=row.passed,
        )


def sum_rows(rows: Iterable[ResultRow], groups: Sequence[LayerGroup]) -> RunStats:
    """The counters of these rows, per layer group as well."""
    total = RunStats(groups=group_stats(groups))
    for row in rows:
        total = add(total, row)
    return total


def add(total: RunStats, row: ResultRow) -> RunStats:
    """The sum with one row more."""
    cached, computed = row.cached_tokens or 0, row.computed_tokens or 0
    return replace(
        total,
        rows=total.rows + 1,
        prompt_tokens=total.prompt_tokens + cached + computed,
        cached_tokens=total.cached_tokens + cached,
        computed_tokens=total.computed_tokens + computed,
        completion_tokens=total.completion_tokens + (row.completion_tokens or 0),
        forked_tokens=total.forked_tokens + (row.forked_tokens or 0),
        recomputed_tokens=total.recomputed_tokens + (row.recomputed_tokens or 0),
        preemptions=total.preemptions + (row.preemptions or 0),
        engine_seconds=total.engine_seconds + (row.engine_seconds or 0.0),
        groups=_add_groups(total.groups, row),
    )


def merge(first: RunStats, second: RunStats) -> RunStats:
    """The plain counters of both; layer groups are those of the first."""
    names = (
        *("rows", "prompt_tokens", "cached_tokens", "computed_tokens", "completion_tokens", "forked_tokens"),
        *("recomputed_tokens", "preemptions", "engine_seconds"),
    )
    return replace(first, **{name: getattr(first, name) + getattr(second, name) for name in names})


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


def gauges(groups: Sequence[LayerGroup], use: Sequence[BlockUse], engine_seconds: float) -> RunStats:
    """Peak and mean block use of an attempt, weighted by its engine seconds when attempts are put together."""
    return RunStats(
        engine_seconds=engine_seconds,
        groups=tuple(
            replace(stats, blocks_peak=used.peak, blocks_mean=used.mean)
            for stats, used in zip(group_stats(groups), use, strict=False)
        ),
    )


def _add_groups(groups: tuple[GroupStats, ...], row: ResultRow) -> tuple[GroupStats, ...]:
    if not row.groups:
        return groups
    return tuple(
        replace(
            stats,
            blocks_allocated=stats.blocks_allocated + counted["allocated"],
            blocks_shared=stats.blocks_shared + counted["shared"],
            blocks_copied=stats.blocks_copied + counted["copied"],
            blocks_evicted=stats.blocks_evicted + counted["evicted"],
            blocks_evicted_unused=stats.blocks_evicted_unused + counted["evicted_unused"],
        )
        for stats, counted in zip(groups, row.groups, strict=True)
    )
