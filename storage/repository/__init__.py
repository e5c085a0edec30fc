"""The only SQL of the program. Every move is one conditional UPDATE whose row count is checked.

All times are the database's clock. Methods are named for the moves of `storage.states`. Each call is one transaction
(`expire_leases`: one per shard). Foreign errors are translated: an unreachable database raises DatabaseDown.
A move whose answer was lost may be repeated: if it did happen under the same epoch, the second call changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from sqlalchemy.exc import IntegrityError

from storage import failpoints, migrate
from storage.database import Database
from storage.errors import JobConflict
from storage.records import (
    Beat,
    Claim,
    Hint,
    Job,
    JobId,
    NewJob,
    NewShard,
    PlanRecord,
    RunStats,
    Segment,
    Shard,
    ShardId,
)
from storage.repository import dispatching, integrity, jobs, plans, segments, shards, splitting, stats
from storage.repository.damage_moves import DamageMoves
from storage.repository.schedule_moves import ScheduleMoves
from storage.repository.steering import Steering
from storage.repository.suspect_moves import SuspectMoves
from storage.repository.worker_moves import WorkerMoves
from storage.states import Outcome

_log = logging.getLogger(__name__)


class Repository(Steering, SuspectMoves, DamageMoves, WorkerMoves, ScheduleMoves):
    """Jobs, shards, segments, workers, statistics and schedules in SQLite or PostgreSQL. May be shared by threads."""

    def __init__(self, url: str) -> None:
        """Open the database; does not create or migrate it. Raises DatabaseDown."""
        self._db = Database(url)

    def close(self) -> None:
        self._db.close()

    @property
    def file(self) -> Path | None:
        """Where it writes on this machine, if it is SQLite."""
        return self._db.file

    @property
    def turn(self) -> AbstractContextManager[object]:
        """Held by the one thread of this process that writes to SQLite."""
        return self._db.turn

    def check_schema(self) -> None:
        """Raise SchemaOutdated unless the database is at this program's migration."""
        migrate.check(self._db)

    # --- jobs -----------------------------------------------------------------------------------------------
    def create_job(self, new: NewJob) -> Job:
        """Insert a job in state validating. Raises JobConflict when run_key or output_uri is taken."""
        try:
            with self._db.write() as conn:
                job = jobs.create(conn, new)
        except IntegrityError as error:
            taken = self.find_job(run_key=new.run_key) or self.find_job(output_uri=new.output_uri)
            if taken is None:
                raise
            raise JobConflict(
                f"job {taken.id} ({taken.state}) already has run key {taken.run_key!r} and output {taken.output_uri};"
                " choose another output directory"
            ) from error
        _log.info("job_created job=%d model=%s", job.id, job.model.source)
        return job

    def claim_job(self, job_id: JobId, owner: str, lease_seconds: float) -> int | None:
        """Take the right to plan (validating) or publish (finalizing, or cancelling without a running shard) a job;
        its new epoch, or None if it is held or has nothing to do."""
        with self._db.write() as conn:
            epoch = jobs.claim(conn, job_id, owner, lease_seconds)
        if epoch is not None:
            _log.info("job_claimed job=%d epoch=%d owner=%s", job_id, epoch, owner)
        return epoch

    def renew_job(self, job_id: JobId, epoch: int, lease_seconds: float) -> None:
        """Extend the lease of claim_job. Raises Fenced."""
        with self._db.write() as conn:
            jobs.renew(conn, job_id, epoch, lease_seconds)

    def queue_job(self, job_id: JobId, epoch: int, plan: PlanRecord, shards: Iterable[NewShard]) -> Job:
        """validating -> queued: store the plan and its shards (streamed, inserted in batches). Raises Fenced."""
        with self._db.write() as conn:
            job = plans.queue(conn, job_id, epoch, plan, shards)
        _log.info("job_queued job=%d shards=%d rows=%d", job_id, job.shards_total, job.rows_total)
        return job

    def complete_job(self, job_id: JobId, epoch: int, manifest_sha256: str, cause: str | None = None) -> Job:
        """finalizing -> completed | failed (zero rows succeeded), or cancelling -> cancelled. Raises Fenced.

        `cause`: what most rows failed of, if the publisher knows; told when none succeeded."""
        with self._db.write() as conn:
            job = jobs.complete(conn, job_id, epoch, manifest_sha256, cause)
        _log.info("job_%s job=%d epoch=%d", job.state, job_id, epoch)
        return job

    def fail_job(self, job_id: JobId, epoch: int | None, error: str) -> None:
        """Any open state -> failed; its open shards -> cancelled. Epoch None: whoever holds it. Raises Fenced."""
        with self._db.write() as conn:
            moved = jobs.fail(conn, job_id, epoch, error)
        if moved:
            _log.warning("job_failed job=%d error=%s", job_id, error)

    def retire_job(self, job_id: JobId) -> bool:
        """Free the run key and output directory of an ended job for a new one; its history stays. False if it is open
        or retired."""
        with self._db.write() as conn:
            return jobs.retire(conn, job_id)

    def get_job(self, job_id: JobId) -> Job:
        """Raises NoSuchJob."""
        with self._db.read() as conn:
            return jobs.get(conn, job_id)

    def find_job(self, *, run_key: str | None = None, output_uri: str | None = None) -> Job | None:
        """The job, not retired, with this run key and output directory."""
        with self._db.read() as conn:
            return jobs.find(conn, run_key, output_uri)

    def list_jobs(self, limit: int = 100) -> list[Job]:
        """Newest first."""
        with self._db.read() as conn:
            return jobs.newest(conn, limit)

    def advance_jobs(self) -> list[Job]:
        """in_progress (or cancelling) jobs without an open shard -> finalizing (cancelling stays); returns every job
        that now waits for a finaliser and has no live lease."""
        with self._db.write() as conn:
            return jobs.advance(conn)

    def shards(self, job_id: JobId) -> list[Shard]:
        """In plan order."""
        with self._db.read() as conn:
            return shards.of_job(conn, job_id)

    # --- shards ---------------------------------------------------------------------------------------------
    def dispatch(self, model_key: str | None, window: int, stale_seconds: float) -> list[Hint]:
        """ready -> queued until `window` shards per model are queued, oldest job first; and hints queued longer than
        `stale_seconds` again, with a raised dispatch_seq. The caller publishes what is returned, after the commit."""
        with self._db.write() as conn:
            return dispatching.dispatch(conn, model_key, window, stale_seconds)

    def claim_shard(
        self,
        shard_id: ShardId,
        owner: str,
        lease_seconds: float,
        *,
        alone: bool = False,
        claim_id: str | None = None,
    ) -> Claim | None:
        """ready, queued or running with an expired lease -> running under epoch + 1. An expired lease counts a crash.
        The first claim moves the job from queued to in_progress. `alone`: the worker runs nothing else until this
        shard ends; suspected shards are given to such a worker only. None: nothing to do, drop the hint.
        The same `claim_id` again, after an answer that was lost, gives the same claim."""
        failpoints.reach("claim.before")
        with self._db.write() as conn:
            claim = shards.claim(conn, shard_id, owner, lease_seconds, alone, claim_id)
        failpoints.reach("claim.after")
        if claim is not None:
            _log.info(
                "shard_claimed job=%d shard=%d epoch=%d owner=%s", claim.job.id, shard_id, claim.shard.epoch, owner
            )
        return claim

    def heartbeat(self, owner: str, held: Collection[tuple[ShardId, int]], lease_seconds: float) -> Beat:
        """Renew all leases of one worker in one statement. An expired lease that nobody took is ours again."""
        with self._db.write() as conn:
            return shards.heartbeat(conn, owner, held, lease_seconds)

    def seal_segment(self, shard_id: ShardId, segment: Segment, stats: RunStats) -> None:
        """Record a sealed segment, its rows' counters and the job's row counts in one transaction. Raises Fenced."""
        with self._db.write() as conn:
            segments.seal(conn, shard_id, segment, stats)

    def segments(self, shard_id: ShardId) -> list[Segment]:
        """All recorded segments of a shard, of every epoch, in the order in which they were sealed."""
        with self._db.read() as conn:
            return segments.of_shard(conn, shard_id)

    def parent_segments(self, shard_id: ShardId) -> list[Segment]:
        """All recorded segments of the shards that this one is a part of: their rows stay theirs."""
        with self._db.read() as conn:
            return segments.of_parents(conn, shard_id)

    def commit_shard(
        self, shard_id: ShardId, epoch: int, out_key: str, out_sha256: str, rows: int, gauges: RunStats
    ) -> None:
        """running -> done; the last shard moves the job to finalizing. `gauges` carries wasted tokens, peak and mean
        block use of this attempt; its counters are ignored, since they came with the segments. Raises Fenced."""
        failpoints.reach("commit.before_sql")
        with self._db.write() as conn:
            moved = segments.commit(conn, shard_id, epoch, out_key, out_sha256, rows, gauges)
        failpoints.reach("commit.after_sql")
        if moved:
            _log.info("shard_committed shard=%d epoch=%d rows=%d", shard_id, epoch, rows)

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
        """Give a running shard back before it is done. Raises Fenced.

        `preempted` (drain, full disk): running -> ready, the shard is not to blame. `crashed` (its worker or engine
        died): -> ready with a crash counted. Otherwise the attempt failed: -> ready, or -> dead once it failed as
        often as the job allows. Of a cancelled job: -> cancelled."""
        assert not (preempted and crashed), f"shard {shard_id} was either preempted or crashed"
        outcome = Outcome.PREEMPTED if preempted else Outcome.CRASHED if crashed else Outcome.FAILED
        with self._db.write() as conn:
            state = shards.release(
                conn,
                shard_id,
                epoch,
                reason=reason,
                outcome=outcome,
                delay_seconds=delay_seconds,
                wasted_tokens=wasted_tokens,
            )
        _log.info("shard_released shard=%d epoch=%d state=%s reason=%s", shard_id, epoch, state, reason)

    def expire_leases(self, max_job_crashes: int) -> list[Shard]:
        """running with an expired lease -> ready with a crash counted. Then jobs that so many workers died of are
        abandoned: their open shards -> cancelled; once they are published, they have failed. Returns the shards as
        they are now."""
        with self._db.read() as conn:
            overdue = shards.overdue(conn)
        expired = []
        for shard_id in overdue:
            with self._db.write() as conn:
                shard = shards.expire(conn, shard_id)
            if shard is not None:
                _log.warning("shard_expired job=%d shard=%d epoch=%d state=%s", *_names(shard), shard.state)
                expired.append(shard)
        with self._db.write() as conn:
            abandoned = splitting.abandon(conn, max_job_crashes)
        for job_id in abandoned:
            _log.error("job_abandoned job=%d", job_id)
        return expired

    def dead_rows(self, job_id: JobId) -> list[tuple[int, int, str]]:
        """(row_lo, row_hi, reason) in plan order of the present generation's shards that were given up. Rows of theirs
        that a recorded segment holds have ended as that segment says; the others are errored."""
        with self._db.read() as conn:
            return shards.buried(conn, job_id)

    # --- statistics -----------------------------------------------------------------------------------------
    def job_stats(self, job_id: JobId, generation: int | None = None) -> RunStats:
        """Sums over all sealed segments, of one generation or of all; gauges: peak = max, mean = weighted by engine
        seconds, over attempts."""
        with self._db.read() as conn:
            return stats.of_job(conn, job_id, generation)

    def check_integrity(self) -> None:
        """Assert that counts, states and leases agree with each other (tests, doctor)."""
        with self._db.read() as conn:
            integrity.check(conn)


def _names(shard: Shard) -> tuple[JobId, ShardId, int]:
    return shard.job_id, shard.id, shard.epoch
