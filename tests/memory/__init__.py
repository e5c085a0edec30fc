"""The moves of jobs and shards in memory: a model of the repository, a hundred times as fast, for simulations.

It knows what a simulation asks for: no workers, no statistics but wasted tokens, one model. That it answers as the real
repository does is tested by the laws of the conformance suite, and schedule by schedule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from storage.errors import Fenced
from storage.records import Beat, Claim, Hint, JobId, Piece, RunStats, Segment, Shard, ShardId
from storage.states import JOB_RUNNABLE, QUARANTINE_CRASHES, SHARD_WAITING, JobState, Outcome, ShardState
from tests.memory.damage import MemoryDamage
from tests.memory.rows import STATUSES, ShardRow, cancel, end_attempt, finalize_if_last

ABANDONED = (
    "workers died {} times while they ran it, which is all that max_job_crashes allows;"
    " its finished rows are published, and the log of a worker says what it died of"
)


def _order(shard: ShardRow) -> tuple[bool, int, int]:
    """Suspected shards come last."""
    return shard.is_suspect, shard.job_id, shard.row_lo


class MemoryRepository(MemoryDamage):
    """The same methods as Repository. `now` is the database's clock."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        super().__init__(now)

    def shards(self, job_id: JobId) -> list[Shard]:
        return [shard.record() for shard in self._jobs[job_id].shards]

    def dispatch(self, model_key: str | None, window: int, stale_seconds: float) -> list[Hint]:
        now = self._now()
        waiting = [shard for job in self._jobs.values() if job.state in JOB_RUNNABLE for shard in job.shards]
        queued = [shard for shard in waiting if shard.state is ShardState.QUEUED]
        ready = [shard for shard in waiting if shard.state is ShardState.READY and shard.not_before <= now]
        ready = sorted((shard for shard in ready if not shard.crashed_alone), key=_order)
        stale = [shard for shard in queued if shard.dispatched_at < now - stale_seconds and not shard.crashed_alone]
        chosen = stale + ready[: max(0, window - len(queued))]
        for shard in chosen:
            shard.state, shard.dispatched_at = ShardState.QUEUED, now
            shard.dispatch_seq += 1
        return [
            Hint(
                job_id=shard.job_id,
                shard_id=shard.id,
                dispatch_seq=shard.dispatch_seq,
                model_key=shard.job.new.model.key,
                model_source=shard.job.new.model.source,
                alone=shard.is_suspect,
            )
            for shard in sorted(chosen, key=_order)
        ]

    def claim_shard(
        self,
        shard_id: ShardId,
        owner: str,
        lease_seconds: float,
        *,
        alone: bool = False,
        claim_id: str | None = None,
    ) -> Claim | None:
        shard, now = self._shards.get(shard_id), self._now()
        if shard is not None and shard.state is ShardState.RUNNING and claim_id and shard.claim_id == claim_id:
            shard.lease_until = now + lease_seconds
            return Claim(shard=shard.record(), job=self.get_job(shard.job_id))
        if shard is None or shard.job.state not in JOB_RUNNABLE or (shard.is_suspect and not alone):
            return None
        taken = shard.state is ShardState.RUNNING
        if taken:
            may = shard.lease_until < now and shard.parent_id is None and shard.crashes + 1 < QUARANTINE_CRASHES
        else:
            may = shard.state in SHARD_WAITING and shard.not_before <= now and not shard.crashed_alone
        if not may:
            return None
        if taken:
            shard.crashes += 1
            end_attempt(shard, Outcome.CRASHED, now)
        shard.state, shard.lease_owner, shard.lease_until = ShardState.RUNNING, owner, now + lease_seconds
        shard.epoch += 1
        shard.claim_id = claim_id
        shard.attempts += 1
        shard.outcomes[shard.epoch], shard.begun[shard.epoch] = None, (owner, now)
        if shard.job.state is JobState.QUEUED:
            shard.job.state, shard.job.started_at = JobState.IN_PROGRESS, now
        return Claim(shard=shard.record(), job=self.get_job(shard.job_id))

    def heartbeat(self, owner: str, held: Collection[tuple[ShardId, int]], lease_seconds: float) -> Beat:
        mine = [
            shard
            for shard in (self._shards[shard_id] for shard_id, epoch in held if self._holds(shard_id, epoch))
            if shard.lease_owner == owner
        ]
        for shard in mine:
            shard.lease_until = self._now() + lease_seconds
        cancelled = frozenset(shard.id for shard in mine if shard.job.state not in JOB_RUNNABLE)
        aborted = frozenset(shard.id for shard in mine if shard.job.state is JobState.FAILING)
        return Beat(held=frozenset(shard.id for shard in mine), cancelled=cancelled, aborted=aborted)

    def seal_segment(self, shard_id: ShardId, segment: Segment, stats: RunStats) -> None:
        shard = self._shards[shard_id]
        if any((known.epoch, known.seq) == (segment.epoch, segment.seq) for known in shard.segments):
            return
        self._guard(shard_id, segment.epoch, f"seal segment {segment.key}")
        shard.segments.append(segment)
        for status in STATUSES:
            shard.job.counts[status] += getattr(segment, status)
        assert sum(shard.job.counts[status] for status in STATUSES) <= shard.job.counts["total"], "rows"

    def segments(self, shard_id: ShardId) -> list[Segment]:
        return sorted(self._shards[shard_id].segments, key=lambda segment: (segment.epoch, segment.seq))

    def commit_shard(
        self, shard_id: ShardId, epoch: int, out_key: str, out_sha256: str, rows: int, gauges: RunStats
    ) -> None:
        shard = self._shards.get(shard_id)
        if shard and (shard.state, shard.epoch, shard.out_key) == (ShardState.DONE, epoch, out_key):
            return
        shard = self._guard(shard_id, epoch, f"commit {out_key}")
        shard.out_key, shard.out_sha256, shard.out_rows = out_key, out_sha256, rows
        shard.state, shard.lease_owner, shard.lease_until, shard.error = ShardState.DONE, None, 0.0, None
        end_attempt(shard, Outcome.COMMITTED, self._now())
        finalize_if_last(shard.job)

    def release_shard(
        self,
        shard_id: ShardId,
        epoch: int,
        *,
        reason: str,
        preempted: bool,
        crashed: bool = False,
        delay_seconds: float = 0.0,
        wasted_tokens: int = 0,
    ) -> None:
        known = self._shards[shard_id]
        outcome = Outcome.PREEMPTED if preempted else Outcome.CRASHED if crashed else Outcome.FAILED
        if not self._holds(shard_id, epoch) and known.outcomes.get(epoch) is outcome:
            return
        shard = self._guard(shard_id, epoch, "release it")
        shard.wasted_tokens += wasted_tokens
        self._end_running(shard, outcome, reason, delay_seconds)

    def expire_leases(self, max_job_crashes: int) -> list[Shard]:
        expired = []
        for shard in self._shards.values():
            if shard.state is ShardState.RUNNING and shard.lease_until < self._now():
                reason = f"worker {shard.lease_owner} was lost in attempt {shard.attempts}"
                self._end_running(shard, Outcome.CRASHED, reason, 0.0)
                expired.append(shard.record())
        for job in self._jobs.values():
            if job.crashes >= max_job_crashes and job.state in JOB_RUNNABLE:
                cancel(job, SHARD_WAITING)
                job.state, job.lease_until = JobState.FAILING, 0.0
                job.error = ABANDONED.format(job.crashes)
        return expired

    def crashed_shards(self) -> list[Shard]:
        return [shard.record() for shard in self._shards.values() if self._must_be_divided(shard)]

    def split_shard(self, shard_id: ShardId, epoch: int, pieces: Sequence[Piece]) -> bool:
        parent = self._shards[shard_id]
        if not self._must_be_divided(parent) or parent.epoch != epoch:
            return False
        parent.state, job = ShardState.SPLIT, parent.job
        self._add_parts(parent, pieces, ShardState.READY)
        finalize_if_last(job)
        return True

    def give_up_shard(self, shard_id: ShardId, epoch: int) -> bool:
        shard = self._shards[shard_id]
        if not self._must_be_divided(shard) or shard.epoch != epoch:
            return False
        self._bury(shard, "engine_killer")
        finalize_if_last(shard.job)
        return True

    def parent_segments(self, shard_id: ShardId) -> list[Segment]:
        parent = self._shards[shard_id].parent_id
        return [] if parent is None else [*self.parent_segments(parent), *self.segments(parent)]

    def _end_running(self, shard: ShardRow, outcome: Outcome, reason: str, delay: float) -> None:
        shard.crashes += outcome is Outcome.CRASHED
        shard.failures += outcome is Outcome.FAILED
        shard.preemptions += outcome is Outcome.PREEMPTED
        if shard.job.state not in JOB_RUNNABLE | {JobState.PAUSED}:
            shard.state = ShardState.CANCELLED
        elif outcome is Outcome.FAILED and shard.failures >= shard.job.new.max_shard_attempts:
            self._bury(shard, "internal")
        else:
            shard.state = ShardState.READY
        shard.lease_owner, shard.lease_until, shard.error = None, 0.0, reason
        shard.not_before = self._now() + delay if delay else 0.0
        end_attempt(shard, outcome, self._now())
        finalize_if_last(shard.job)

    def _bury(self, shard: ShardRow, reason: str) -> None:
        shard.state, shard.dead, shard.dead_outputs = ShardState.DEAD, reason, shard.num_outputs - shard.sealed
        shard.job.counts["errored"] += shard.dead_outputs

    def _must_be_divided(self, shard: ShardRow) -> bool:
        return shard.state is ShardState.READY and shard.crashed_alone and shard.job.state in JOB_RUNNABLE

    def dead_rows(self, job_id: JobId) -> Sequence[tuple[int, int, str]]:
        return [(shard.row_lo, shard.row_hi, shard.dead) for shard in self._jobs[job_id].shards if shard.dead]

    def outcomes(self, job_id: JobId) -> dict[ShardId, dict[int, Any]]:
        """How each attempt ended: by shard and epoch."""
        return {shard.id: dict(shard.outcomes) for shard in self._jobs[job_id].shards}

    def job_stats(self, job_id: JobId) -> RunStats:
        return RunStats(wasted_tokens=sum(shard.wasted_tokens for shard in self._jobs[job_id].shards))

    def check_integrity(self) -> None:
        for job in self._jobs.values():
            sealed = sum(segment.succeeded for shard in job.shards for segment in shard.segments)
            assert job.counts["succeeded"] == sealed
            for shard in job.shards:
                running = shard.state is ShardState.RUNNING
                assert running == (shard.lease_owner is not None) == (shard.lease_until != 0.0), shard.id
                assert len(shard.outcomes) == shard.attempts == shard.epoch, shard.id
                assert list(shard.outcomes.values()).count(None) == int(running), shard.id
                assert shard.state is not ShardState.DONE or shard.out_rows == shard.sealed, shard.id

    # --- below ------------------------------------------------------------------------------------------------
    def _holds(self, shard_id: ShardId, epoch: int) -> bool:
        shard = self._shards[shard_id]
        return shard.epoch == epoch and shard.state is ShardState.RUNNING

    def _guard(self, shard_id: ShardId, epoch: int, wish: str) -> ShardRow:
        shard = self._shards.get(shard_id)
        if shard is None:
            raise Fenced(f"there is no shard {shard_id}; its hint is stale or forged")
        if not self._holds(shard_id, epoch):
            raise Fenced(f"shard {shard_id} is {shard.state} under epoch {shard.epoch}; epoch {epoch} may not {wish}")
        return shard
