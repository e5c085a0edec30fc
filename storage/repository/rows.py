"""SQL rows to records."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from storage.records import Job, JobId, ModelRef, PlanRecord, Segment, Shard, ShardId
from storage.schedule_records import NewSchedule, Run, RunRowId, Schedule, ScheduleId
from storage.states import JobState, RunState, ShardState


def as_job(row: Row[Any]) -> Job:
    return Job(
        id=JobId(row.id),
        run_key=row.run_key,
        name=row.name,
        state=JobState(row.state),
        model=as_model(row),
        input_uri=row.input_uri,
        input_fingerprint=row.input_fingerprint,
        output_uri=row.output_uri,
        spec=row.spec,
        spec_hash=row.spec_hash,
        options=row.options,
        plan=_as_plan(row),
        rows_total=row.rows_total,
        rows_succeeded=row.rows_succeeded,
        rows_errored=row.rows_errored,
        rows_expired=row.rows_expired,
        rows_canceled=row.rows_canceled,
        shards_total=row.shards_total,
        shards_done=row.shards_done,
        error=row.error,
        cancel_requested=row.cancel_requested_at is not None,
        created_at=_as_time(row.created_at),
        started_at=_as_time_or_none(row.started_at),
        finished_at=_as_time_or_none(row.finished_at),
        manifest_sha256=row.manifest_sha256,
        max_shard_attempts=row.max_shard_attempts,
        deadline=_as_time_or_none(row.deadline_at),
        max_error_rate=row.max_error_rate,
        tags=row.tags,
        generation=row.generation,
        published_generation=row.published_generation,
    )


def as_model(row: Row[Any]) -> ModelRef:
    return ModelRef(source=row.model_source, revision=row.model_revision, dtype=row.model_dtype, key=row.model_key)


def as_shard(row: Row[Any]) -> Shard:
    return Shard(
        id=ShardId(row.id),
        job_id=JobId(row.job_id),
        idx=row.idx,
        row_lo=row.row_lo,
        row_hi=row.row_hi,
        state=ShardState(row.state),
        epoch=row.epoch,
        lease_owner=row.lease_owner,
        attempts=row.attempts,
        crashes=row.crashes,
        preemptions=row.preemptions,
        dispatch_seq=row.dispatch_seq,
        out_key=row.out_key,
        out_sha256=row.out_sha256,
        out_rows=row.out_rows,
        error=row.error,
        num_outputs=row.num_outputs,
        cost_tokens=row.cost_tokens,
        failures=row.failures,
        parent_id=None if row.parent_id is None else ShardId(row.parent_id),
        plan_idx=row.plan_idx,
        generation=row.generation,
        reopenings=row.reopenings,
    )


def as_segment(row: Row[Any]) -> Segment:
    return Segment(
        seq=row.seq,
        key=row.key,
        sha256=row.sha256,
        rows=row.rows,
        epoch=row.epoch,
        succeeded=row.succeeded,
        errored=row.errored,
        expired=row.expired,
        canceled=row.canceled,
    )


def as_schedule(row: Row[Any]) -> Schedule:
    return Schedule(
        id=ScheduleId(row.id),
        declared=NewSchedule(**{field.name: getattr(row, field.name) for field in fields(NewSchedule)}),
        revision=row.revision,
        cursor=row.cursor,
        paused=row.paused_at is not None,
        created_at=_as_time(row.created_at),
        ticked_at=_as_time_or_none(row.ticked_at),
        left_out=None if row.left_out_before is None else (row.left_out_after, row.left_out_before),
    )


def as_run(row: Row[Any]) -> Run:
    return Run(
        id=RunRowId(row.id),
        schedule_id=ScheduleId(row.schedule_id),
        schedule=row.schedule_name,
        label=row.label,
        slot=row.slot,
        logical_time=_as_time(row.logical_time),
        state=RunState(row.state),
        cause=row.cause,
        attempt=row.attempt,
        run_id=row.run_id,
        job_id=None if row.job_id is None else JobId(row.job_id),
        max_active=row.max_active,
        rank=row.rank,
        backfill=row.backfill,
        wait_until=row.wait_until,
        epoch=row.epoch,
        gates=row.gates,
        reason=row.reason,
        created_at=_as_time(row.created_at),
        started_at=_as_time_or_none(row.started_at),
        finished_at=_as_time_or_none(row.finished_at),
        settle_tries=row.settle_tries,
        notice=row.notice,
        notice_tries=row.notice_tries,
        notice_error=row.notice_error,
        noticed=row.noticed_at is not None,
    )


def _as_plan(row: Row[Any]) -> PlanRecord | None:
    if row.plan_path is None:
        return None
    return PlanRecord(
        path=row.plan_path,
        sha256=row.plan_sha256,
        num_rows=row.plan_rows,
        prompt_tokens=row.plan_prompt_tokens,
        predicted_cached_tokens=row.plan_predicted_cached_tokens,
        lower_bound_tokens=row.plan_lower_bound_tokens,
        num_errors=row.plan_errors,
    )


def _as_time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _as_time_or_none(seconds: float | None) -> datetime | None:
    return None if seconds is None else _as_time(seconds)
