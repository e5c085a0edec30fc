"""What a job's records mean to a reader: counts that add up, statistics, and which process is missing.

Pure functions from records to plain values; the commands print them as a table or as JSON.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from storage.records import GroupStats, Job, ModelRef, RunStats, Shard, ShardId, WorkerRecord
from storage.states import JOB_FINAL, SHARD_OPEN, JobState, ShardState

if TYPE_CHECKING:
    from jobs.planning import Plan


def row_counts(job: Job, shards: Sequence[Shard], sealed: Mapping[ShardId, int]) -> dict[str, int]:
    """Rows by status; total = pending + running + succeeded + errored + expired + canceled, whatever was read when.

    `sealed` has the sealed rows of each running shard. Records are read one after another while workers go on, so
    what has ended is trusted first, then what runs; the rest is pending.
    """
    left = max(0, job.rows_total - job.rows_done)
    open_rows = sum(
        (shard.num_outputs or shard.row_hi - shard.row_lo) - sealed.get(shard.id, 0)
        for shard in shards
        if shard.state == ShardState.RUNNING
    )
    running = 0 if job.state in JOB_FINAL else min(left, max(0, open_rows))
    return {
        "total": max(job.rows_total, job.rows_done),
        "pending": left - running,
        "running": running,
        "succeeded": job.rows_succeeded,
        "errored": job.rows_errored,
        "expired": job.rows_expired,
        "canceled": job.rows_canceled,
    }


def shard_counts(shards: Sequence[Shard]) -> dict[str, int]:
    """Shards by state, states without a shard left out."""
    counts = {state.value: sum(shard.state == state for shard in shards) for state in ShardState}
    return {state: count for state, count in counts.items() if count}


def summary(job: Job) -> dict[str, Any]:
    """One job as one line of `nightmill list`."""
    return {
        "job": int(job.id),
        "name": job.name,
        "state": job.state.value,
        "model": job.model.source,
        "rows": job.rows_total,
        "done": job.rows_done,
        "errored": job.rows_errored,
        "output": job.output_uri,
        "created_at": _time(job.created_at),
    }


def status(
    job: Job, shards: Sequence[Shard], sealed: Mapping[ShardId, int], stats: RunStats, missing: Sequence[str]
) -> dict[str, Any]:
    """Everything that `nightmill status` says about a job."""
    return {
        **summary(job),
        "input": job.input_uri,
        "generation": job.generation,
        "published_generation": job.published_generation,
        "counts": row_counts(job, shards, sealed),
        "shards": shard_counts(shards),
        "hit_rate": hit_rate(stats),
        "started_at": _time(job.started_at),
        "finished_at": _time(job.finished_at),
        "deadline": _time(job.deadline),
        "cancel_requested": job.cancel_requested,
        "error": job.error,
        "missing": list(missing),
    }


def plan_lines(plan: Plan) -> list[str]:
    """What submit says about a new plan before the night begins."""
    record = plan.record
    share = record.predicted_cached_tokens / record.prompt_tokens if record.prompt_tokens else 0.0
    lines = [
        f"columns: {plan.columns}",
        f"plan: {record.num_rows:,} rows ({plan.num_outputs:,} outputs) in {len(plan.shards):,} shards",
        f"prompts: {record.prompt_tokens:,} tokens, the longest {plan.longest_prompt:,};"
        f" predicted hit rate {share:.1%}, at least {record.lower_bound_tokens:,} tokens to compute",
    ]
    if plan.left_out:
        lines.insert(1, f"only new rows: {plan.left_out:,} rows of the input are left out")
    if plan.row_errors:
        errors = ", ".join(f"{count:,} {code}" for code, count in sorted(plan.row_errors.items()))
        lines.append(f"rows with errors: {errors}; they come out as errored rows, the others run")
    return lines


def hit_rate(stats: RunStats) -> float | None:
    """Share of prompt tokens that came from the cache; None before the first prompt."""
    return stats.cached_tokens / stats.prompt_tokens if stats.prompt_tokens else None


def tokens_per_second(stats: RunStats) -> float | None:
    """New tokens per second of engine time; None before the first step."""
    return stats.completion_tokens / stats.engine_seconds if stats.engine_seconds else None


def computed_over_bound(job: Job, stats: RunStats) -> float | None:
    """Prompt tokens that were computed, for each that the plan's prefix tree makes necessary: 1 is the best there is.

    None until every row has had its turn, and if some never get it: the bound is that of all prompts together.
    """
    if job.plan is None or not job.plan.lower_bound_tokens or job.rows_succeeded + job.rows_errored < job.rows_total:
        return None
    return stats.computed_tokens / job.plan.lower_bound_tokens


def statistics(job: Job, stats: RunStats, generation: int | None = None) -> dict[str, Any]:
    """The object of `nightmill stats --json`. prompt_tokens = cached_tokens + computed_tokens.

    `stats` are those of one `generation`, or of all together. The bound is known of all together alone.
    planned_cached_tokens sums up what the plan expected of the rows that are counted here, no others, so that it can
    be held against cached_tokens at any time.
    """
    is_whole = generation is None or job.generation == 1
    return {
        "job": int(job.id),
        "generations": list(range(1, job.generation + 1)) if generation is None else [generation],
        "rows": stats.rows,
        "prompt_tokens": stats.prompt_tokens,
        "planned_cached_tokens": stats.planned_tokens,
        "cached_tokens": stats.cached_tokens,
        "computed_tokens": stats.computed_tokens,
        "lower_bound_tokens": job.plan.lower_bound_tokens if is_whole and job.plan else None,
        "computed_over_bound": computed_over_bound(job, stats) if is_whole else None,
        "completion_tokens": stats.completion_tokens,
        "forked_tokens": stats.forked_tokens,
        "recomputed_tokens": stats.recomputed_tokens,
        "wasted_tokens": stats.wasted_tokens,
        "engine_seconds": stats.engine_seconds,
        "tokens_per_second": tokens_per_second(stats),
        "hit_rate": hit_rate(stats),
        "limited_by": dict(largest_first(stats.limited_by)),
        "groups": [_group(group) for group in stats.groups],
    }


def largest_first(limits: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """(name, tokens) in the order in which a reader wants them."""
    return sorted(limits, key=lambda limit: (-limit[1], limit[0]))


def _group(group: GroupStats) -> dict[str, Any]:
    return {
        "kind": group.kind,
        "layers": group.layers,
        "block_size": group.block_size or None,  # a state slot holds any number of tokens
        "window": group.window,
        "blocks_allocated": group.blocks_allocated,
        "blocks_shared": group.blocks_shared,
        "blocks_copied": group.blocks_copied,
        "blocks_evicted": group.blocks_evicted,
        "blocks_peak": group.blocks_peak,
        "blocks_mean": group.blocks_mean,
    }


RECONCILER = "reconciler"
"""What a reconciler's record has for a model; its model has no key."""


@dataclass(frozen=True, slots=True)
class Staff:
    """Who is there to run jobs: the live workers by model key, whether a reconciler lives, and whose part that is."""

    models: Mapping[str, str]  # model key -> source, of the workers that take shards
    reconciler: bool
    embedded: bool  # one owner brings all of them
    owner: bool

    @classmethod
    def of(cls, records: Sequence[WorkerRecord], *, embedded: bool, owner: bool) -> Staff:
        """`records` are those that were heard of lately."""
        serving = [record for record in records if record.model_key and record.state in ("starting", "ready")]
        reconciler = any(
            not each.model_key and each.model_source == RECONCILER and each.state != "gone" for each in records
        )
        return cls({record.model_key: record.model_source for record in serving}, reconciler, embedded, owner)


def missing_processes(job: Job, shards: Sequence[Shard], staff: Staff) -> list[str]:
    """What has to be started before this job can go on, each with its command; empty when nothing is missing."""
    if job.state in JOB_FINAL:
        return []
    if job.state is JobState.PAUSED:
        return [f"job {job.id} is paused: `nightmill resume {job.id}` lets it go on"]
    if staff.embedded:
        again = f"run the same submit again (output {job.output_uri})"
        return [] if staff.owner else [f"nobody owns this state directory, so nothing runs: {again}"]
    absent = []
    has_work = any(shard.state in SHARD_OPEN for shard in shards)
    if has_work and job.model.key not in staff.models:
        others = f" (live workers serve {', '.join(sorted(set(staff.models.values())))})" if staff.models else ""
        start = f"start one with `{serving_command(job.model, job.options.get('max_model_len'))}`"
        absent.append(f"no live worker can serve {job.model.source}{others}: {start}")
    if not staff.reconciler:
        absent.append("no reconciler is live, so nothing is published or retried: start `nightmill reconciler`")
    return absent


def serving_command(model: ModelRef, max_model_len: int | None = None) -> str:
    """The worker that serves this very model. The type is always told: nobody knows the worker's settings here."""
    revision = [] if model.revision is None else ["--model-revision", model.revision]
    words = ["nightmill", "worker", "--model", model.source, *revision, "--dtype", model.dtype]
    limit = "" if max_model_len is None else f"NIGHTMILL_MAX_MODEL_LEN={max_model_len} "
    return limit + shlex.join(words)


def _time(when: datetime | None) -> str | None:
    return when.isoformat() if when else None
