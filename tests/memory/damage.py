"""The moves of damaged files in memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from storage.errors import Fenced
from storage.records import Damage, Job, JobId, Piece, ShardId
from storage.states import JOB_STOPPING, QUARANTINE_CRASHES, JobState, Outcome, ShardState
from tests.memory.jobs import MemoryJobs
from tests.memory.rows import STATUSES, ShardRow, fenced_job


class MemoryDamage(MemoryJobs):
    def drop_segments(self, shard_id: ShardId, epoch: int, attempts: Collection[int], error: str) -> None:
        shard = self._shards[shard_id]
        if shard.epoch != epoch or shard.state not in (ShardState.RUNNING, ShardState.READY):
            raise Fenced(
                f"shard {shard_id} is {shard.state} under epoch {shard.epoch}; epoch {epoch} may not drop segments"
            )
        shard.error = error
        self._drop(shard, attempts)

    def reopen_shards(self, job_id: JobId, epoch: int, damages: Sequence[Damage]) -> Job:
        job = self._jobs[job_id]
        if job.epoch == epoch and all(self._shards[each.shard_id].reopened_under == epoch for each in damages):
            return self.get_job(job_id)
        if job.epoch != epoch or job.state not in {JobState.FINALIZING, *JOB_STOPPING}:
            raise fenced_job(job, epoch, "reopen its shards")
        stops = job.state in JOB_STOPPING or job.cancelled_at is not None
        for damage in damages:
            self._reopen(self._shards[damage.shard_id], damage, stops)
        if job.state is JobState.FINALIZING:
            job.state = JobState.CANCELLING if stops else JobState.IN_PROGRESS
        job.lease_until = 0.0
        return self.get_job(job_id)

    def _reopen(self, shard: ShardRow, damage: Damage, stops: bool) -> None:
        assert shard.epoch == damage.epoch
        was = shard.state
        if was in (ShardState.DONE, ShardState.DEAD) and not stops:
            shard.state = ShardState.READY
            shard.crashes = min(shard.crashes, QUARANTINE_CRASHES if shard.parent_id is None else 0)
        elif was is ShardState.DONE:
            shard.state = ShardState.CANCELLED
        shard.reopenings += 1
        shard.reopened_under, shard.error, shard.not_before = shard.job.epoch, damage.error, 0.0
        shard.out_key = shard.out_sha256 = shard.out_rows = None
        dropped = self._drop(shard, damage.attempts)
        if was is ShardState.DONE:
            assert shard.outcomes[shard.epoch] is Outcome.COMMITTED
            shard.outcomes[shard.epoch] = Outcome.DAMAGED
        elif was is ShardState.DEAD and stops:
            shard.dead_outputs += dropped
            shard.job.counts["errored"] += dropped
        elif was is ShardState.DEAD:
            shard.job.counts["errored"] -= shard.dead_outputs
            shard.dead, shard.dead_outputs = None, 0
        elif was is ShardState.SPLIT:
            assert sum(piece.num_outputs for piece in damage.pieces) == dropped
            self._add_parts(shard, damage.pieces, ShardState.CANCELLED if stops else ShardState.READY)

    def _drop(self, shard: ShardRow, attempts: Collection[int]) -> int:
        lost = [segment for segment in shard.segments if segment.epoch in attempts]
        shard.segments = [segment for segment in shard.segments if segment.epoch not in attempts]
        for status in STATUSES:
            shard.job.counts[status] -= sum(getattr(segment, status) for segment in lost)
        return sum(segment.rows for segment in lost)

    def _add_parts(self, parent: ShardRow, pieces: Sequence[Piece], state: ShardState) -> None:
        job = parent.job
        highest = max(shard.idx for shard in job.shards)
        for number, piece in enumerate(pieces, start=1):
            cost = parent.cost_tokens * piece.num_outputs // parent.num_outputs
            new = ShardId(len(self._shards) + 1)
            shard = ShardRow(job, new, job.id, highest + number, piece.row_lo, piece.row_hi, cost, piece.num_outputs)
            shard.parent_id, shard.state = parent.id, state
            shard.plan_idx = parent.idx if parent.plan_idx is None else parent.plan_idx
            self._shards[new] = shard
            job.shards.append(shard)
        job.shards.sort(key=lambda shard: (shard.row_lo, shard.id))
