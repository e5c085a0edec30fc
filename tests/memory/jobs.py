"""The moves of jobs in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from storage.records import Job, JobId, NewJob, NewShard, PlanRecord, ShardId
from storage.states import JOB_FINAL, JOB_RUNNABLE, JOB_STOPPING, SHARD_OPEN, SHARD_WAITING, JobState, ShardState
from tests.memory.rows import STATUSES, JobRow, ShardRow, as_time, cancel, fenced_job

LEASED = (JobState.VALIDATING, JobState.FINALIZING, *JOB_STOPPING)
_ENDS = {JobState.CANCELLING: JobState.CANCELLED, JobState.FAILING: JobState.FAILED}


class MemoryJobs:
    """Jobs and their shards; `now` is the database's clock."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._jobs: dict[JobId, JobRow] = {}
        self._shards: dict[ShardId, ShardRow] = {}

    def clear(self) -> None:
        self._jobs.clear()
        self._shards.clear()

    # --- jobs -------------------------------------------------------------------------------------------------
    def create_job(self, new: NewJob) -> Job:
        job = JobRow(JobId(len(self._jobs) + 1), new)
        self._jobs[job.id] = job
        return self.get_job(job.id)

    def claim_job(self, job_id: JobId, owner: str, lease_seconds: float) -> int | None:
        job = self._jobs[job_id]
        if job.state not in LEASED or job.lease_until >= self._now() or job.has_open_shard:
            return None
        job.epoch += 1
        job.lease_until = self._now() + lease_seconds
        return job.epoch

    def renew_job(self, job_id: JobId, epoch: int, lease_seconds: float) -> None:
        job = self._jobs[job_id]
        if job.epoch != epoch or job.state not in LEASED:
            raise fenced_job(job, epoch, "renew its lease")
        job.lease_until = self._now() + lease_seconds

    def queue_job(self, job_id: JobId, epoch: int, plan: PlanRecord, shards: Iterable[NewShard]) -> Job:
        job = self._jobs[job_id]
        if job.epoch == epoch and job.state is JobState.QUEUED:
            return self.get_job(job_id)
        if job.epoch != epoch or job.state is not JobState.VALIDATING:
            raise fenced_job(job, epoch, "store its plan")
        first = len(self._shards) + 1
        for number, new in enumerate(shards, first):
            outputs = new.row_hi - new.row_lo if new.num_outputs is None else new.num_outputs
            shard = ShardRow(job, ShardId(number), job_id, new.idx, new.row_lo, new.row_hi, new.cost_tokens, outputs)
            self._shards[shard.id] = shard
            job.shards.append(shard)
        job.counts["total"] = sum(shard.num_outputs for shard in job.shards)
        job.state, job.plan, job.lease_until = JobState.QUEUED, plan, 0.0
        return self.get_job(job_id)

    def complete_job(self, job_id: JobId, epoch: int, manifest_sha256: str, cause: str | None = None) -> Job:
        job = self._jobs[job_id]
        if job.epoch == epoch and job.state in JOB_FINAL and job.manifest_sha256 == manifest_sha256:
            return self.get_job(job_id)
        if job.epoch != epoch or job.state not in {JobState.FINALIZING, *JOB_STOPPING}:
            raise fenced_job(job, epoch, "complete it")
        job.manifest_sha256 = manifest_sha256
        if job.state in JOB_STOPPING:
            return self._end(job, _ENDS[job.state], job.error)
        if job.counts["succeeded"] == 0 and job.counts["total"] > 0:
            dead = next((f"{shard.dead} ({shard.error})" for shard in job.shards if shard.dead), None)
            cause = cause or dead or "see the error columns of its output"
            return self._end(job, JobState.FAILED, f"none of {job.counts['total']} rows succeeded: {cause}")
        return self._end(job, JobState.COMPLETED, job.error)

    def fail_job(self, job_id: JobId, epoch: int | None, error: str) -> None:
        job = self._jobs[job_id]
        if epoch is not None and job.epoch != epoch:
            raise fenced_job(job, epoch, "fail it")
        if job.state not in JOB_FINAL:
            cancel(job, SHARD_OPEN)
            self._end(job, JobState.FAILED, error)

    def request_cancel(self, job_id: JobId) -> Job:
        job = self._jobs[job_id]
        if job.state not in JOB_FINAL | JOB_STOPPING and job.cancelled_at is None:
            job.cancelled_at = self._now()
            if job.state is JobState.VALIDATING:
                self._end(job, JobState.CANCELLED, None)
            elif job.state is not JobState.FINALIZING:
                cancel(job, SHARD_WAITING)
                job.state, job.lease_until = JobState.CANCELLING, 0.0
        return self.get_job(job_id)

    def get_job(self, job_id: JobId) -> Job:
        job = self._jobs[job_id]
        new, counts = job.new, job.counts
        return Job(
            **{name: getattr(new, name) for name in ("run_key", "name", "model", "input_uri", "input_fingerprint")},
            **{name: getattr(new, name) for name in ("output_uri", "spec", "spec_hash", "max_shard_attempts", "tags")},
            **{f"rows_{name}": count for name, count in counts.items()},
            id=job_id,
            state=job.state,
            plan=job.plan,
            shards_total=sum(shard.state is not ShardState.SPLIT for shard in job.shards),
            shards_done=sum(shard.state is ShardState.DONE for shard in job.shards),
            error=job.error,
            cancel_requested=job.cancelled_at is not None,
            created_at=datetime.fromtimestamp(0, UTC),
            started_at=as_time(job.started_at),
            finished_at=as_time(job.finished_at),
            manifest_sha256=job.manifest_sha256,
            published_generation=0 if job.manifest_sha256 is None else 1,
        )

    def advance_jobs(self) -> list[Job]:
        for job in self._jobs.values():
            if job.state in JOB_RUNNABLE and not job.has_open_shard:
                job.state, job.lease_until = JobState.FINALIZING, 0.0
        waiting = (JobState.FINALIZING, *JOB_STOPPING)
        return [
            self.get_job(job.id)
            for job in self._jobs.values()
            if job.state in waiting and job.lease_until < self._now() and not job.has_open_shard
        ]

    def _end(self, job: JobRow, state: JobState, error: str | None) -> Job:
        counts = job.counts
        counts["canceled"] += counts["total"] - sum(counts[status] for status in STATUSES)
        job.state, job.error, job.finished_at, job.lease_until = state, error, self._now(), 0.0
        return self.get_job(job.id)
