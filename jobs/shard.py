"""The story of one attempt at a shard: claim, read, generate, seal as rows finish, merge, commit.

Whatever happens on the way, the claim is given back in SQL first and told to Celery second.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from engine.errors import EngineDead
from engine.request import Completion
from jobs.claiming import has_room, try_claim
from jobs.damage import lost_attempts
from jobs.disk import NO_ROOM
from jobs.engines import BlockUse, Feed
from jobs.inflight import InFlight
from jobs.junctions import RowPlan
from jobs.leases import Lease
from jobs.outcome import Ending, Outcome, ShardFailed
from jobs.patience import until_answered
from jobs.planrows import PlanRow, unsealed_rows
from jobs.quarantine import cut_waves
from jobs.recorder import Recorder
from jobs.retry import Retry, decide, is_full_disk
from jobs.rows import RowMaker, group_stats, with_use
from jobs.sampling import Sampling
from jobs.tools import Tools
from storage.errors import DatabaseDown, Fenced, StorageError
from storage.parquet.plan import passed_schema, read_rows
from storage.parquet.writer import SegmentWriter, segment_keys, write_shard
from storage.records import Claim, JobId, RunStats, ShardId

log = logging.getLogger(__name__)

T = TypeVar("T")

POLL_SECONDS = 0.1  # how soon an attempt notices that it must end
ABORT_SECONDS = 1.0  # how long an aborted attempt waits for rows that were finishing


def run_shard(
    tools: Tools, shard_id: ShardId, revoked: threading.Event, *, job_id: JobId | None = None, alone: bool = False
) -> Outcome:
    """Try to claim the shard and run it to an end, `alone` when nothing else runs here. Raises ShardFailed after the
    failure is recorded in SQL. `job_id`: whose output must have room before the shard is claimed, as the hint says."""
    if not tools.gate.enter(shard_id, alone=alone):
        return Outcome(ending=Ending.DUPLICATE)
    try:
        while not tools.gate.has_turn(shard_id):
            if revoked.is_set() or tools.stopping.wait(POLL_SECONDS):
                return Outcome(ending=Ending.DROPPED)
        claim = try_claim(tools, shard_id, alone) if job_id is None or has_room(tools, job_id) else None
        if claim is None:
            return Outcome(ending=Ending.DROPPED)
        lease = tools.leases.hold(shard_id, claim.shard.epoch)
        try:
            return Attempt(tools, claim, lease, revoked).run()
        finally:
            tools.leases.drop(lease)
    finally:
        tools.gate.leave(shard_id)


class Attempt:
    """One try at a claimed shard. Lives in one thread; only the requests are made in the engine's."""

    def __init__(self, tools: Tools, claim: Claim, lease: Lease, revoked: threading.Event) -> None:
        self.tools = tools
        self.shard = claim.shard
        self.job = claim.job
        self.lease = lease
        self.revoked = revoked
        self.out = Path(claim.job.output_uri)
        self.started = time.monotonic()
        self._plan_path = self.out / (claim.job.plan.path if claim.job.plan else "")
        self._sealed_keys: list[str] = []  # segments of earlier attempts
        self._skip: set[tuple[int, int]] = set()  # (row_index, sample_index) in them, and of shards that it is part of
        self._owed = 0  # results still to come
        self.in_flight = InFlight(
            RowMaker(
                decoder=tools.encoder,
                eos_token_ids=tools.encoder.eos_token_ids,
                shard_id=self.shard.id,
                attempt=self.shard.attempts,
                started_at=datetime.now(UTC),
            ),
            tools.encoder,
            self._skip,
            prefix=f"{self.shard.id}.{self.shard.epoch}",
            job=str(self.job.id),
        )
        self._recorder: Recorder | None = None

    def run(self) -> Outcome:
        """To the end of the attempt. Raises ShardFailed."""
        try:
            ending = self._work()
        except Fenced:
            if self._recorder is not None:
                self._recorder.remove_unrecorded()
            ending = Ending.FENCED
        except BaseException as error:
            self._give_up(error)
            raise ShardFailed(
                f"shard {self.shard.idx} of job {self.job.id}, attempt {self.shard.attempts}: "
                f"{type(error).__name__}: {error}"
            ) from error
        stats = self._recorder.total if self._recorder else RunStats()
        outcome = Outcome(ending=ending, stats=stats, seconds=time.monotonic() - self.started)
        log.info("shard_ended job=%d shard=%d epoch=%d %s", self.job.id, self.shard.id, self.shard.epoch, outcome)
        return outcome

    def _work(self) -> Ending:
        self._recorder = self._make_recorder()  # reads the plan: without it the segments are no more to be seen here
        self._load_sealed()
        self.tools.gate.owe(self.shard.id, self._owed)
        for wave in self._waves():
            wanted = takewhile(lambda _: not self.lease.cancelled, wave)  # what the engine has is finished
            with self.tools.engine.feed(self.in_flight.requests(wanted)) as feed:
                ending = self._collect(feed)
            self._seal_all()
            if ending is not Ending.DONE:
                break
        if ending is Ending.DONE:
            self._commit()
        else:
            self._release(str(ending), Retry(0.0, preempted=True))
        return ending

    # --- reading ----------------------------------------------------------------------------------------------
    def _load_sealed(self) -> None:
        repository, shard = self.tools.repository, self.shard
        sealed = self._ask(lambda: repository.segments(shard.id))
        lost = lost_attempts(self.out, sealed)
        if lost:
            error = next(iter(lost.values()))
            self._ask(lambda: repository.drop_segments(shard.id, shard.epoch, lost, error))
        self._sealed_keys = [segment.key for segment in sealed if segment.epoch not in lost]
        self._skip |= segment_keys(self.out, self._sealed_keys)
        self._owed = shard.num_outputs - len(self._skip)
        if shard.parent_id is not None:
            inherited = self._ask(lambda: repository.parent_segments(shard.id))
            self._skip |= segment_keys(self.out, [segment.key for segment in inherited])

    def _waves(self) -> Iterator[Iterable[tuple[PlanRow, RowPlan]]]:
        """The rows that are not sealed yet: all at once, those of a suspected shard only when earlier ones are."""
        table = read_rows(self._plan_path, self.shard.row_group, self.shard.row_lo, self.shard.row_hi)
        defaults = Sampling.from_spec(self.job.spec["sampling"])
        rows = unsealed_rows(table, defaults, self._skip, self.tools.encoder.max_model_len)
        if not self.shard.is_suspect:
            yield rows
            return
        suspected = list(rows)
        for part in cut_waves(len(suspected)) or [slice(0)]:
            yield suspected[part]

    def _make_recorder(self) -> Recorder:
        settings, plan = self.tools.settings, self._plan_path
        return Recorder(
            self.tools.repository,
            SegmentWriter(self.out, self.shard.idx, self.shard.epoch, passed_schema(plan), plan.parents[1].name),
            self.shard.id,
            self.shard.epoch,
            out=self.out,
            groups=self.tools.engine.groups,
            seconds=settings.segment_seconds,
            rows=settings.segment_rows,
            use=self._block_use,
        )

    def _block_use(self) -> Sequence[BlockUse]:
        return self.tools.engine.block_use(str(self.job.id))

    # --- generating -------------------------------------------------------------------------------------------
    def _collect(self, feed: Feed) -> Ending:
        while not feed.done:
            ending = self._must_end()
            if ending is not None:
                self._abort(feed)
                return ending
            self._take(feed.poll(POLL_SECONDS))
            if self.recorder.due:
                self.recorder.seal()
        self._take([])
        return self._must_end() or (Ending.CANCELLED if self.lease.cancelled and self._owed else Ending.DONE)

    def _must_end(self) -> Ending | None:
        if self.lease.lost:
            raise Fenced(f"shard {self.shard.id} epoch {self.shard.epoch}: another worker has it")
        if not self.tools.engine.alive:
            raise EngineDead("the engine has ended; its worker starts again and the shard is tried again")
        if self.lease.aborted:
            return Ending.CANCELLED
        if self.lease.paused:
            return Ending.PAUSED
        if self.tools.stopping.is_set() or self.revoked.is_set():
            return Ending.PREEMPTED
        return None

    def _abort(self, feed: Feed) -> None:
        feed.cancel()
        deadline = time.monotonic() + ABORT_SECONDS
        while not feed.done and time.monotonic() < deadline:
            self._take(feed.poll(0.05))

    def _take(self, completions: list[Completion]) -> None:
        rows = self.in_flight.finish(completions)
        self.recorder.append(rows)
        self._owed -= len(rows)
        self.tools.gate.owe(self.shard.id, self._owed)

    # --- ending -----------------------------------------------------------------------------------------------
    def _seal_all(self) -> None:
        """Everything durable and recorded; waits for SQL. Raises Fenced, or DatabaseDown when the worker must stop."""
        while True:
            self.recorder.seal()
            if self.recorder.settled:
                return
            if self.lease.lost:
                raise Fenced(f"shard {self.shard.id} epoch {self.shard.epoch}: another worker has it")
            if self.tools.stopping.wait(POLL_SECONDS):
                raise DatabaseDown("stopped before SQL came back; unrecorded rows are generated again")

    def _commit(self) -> None:
        keys = [*self._sealed_keys, *self.recorder.keys]
        file = write_shard(self.out, self.shard.idx, self.shard.epoch, keys)
        assert file.rows == self.shard.num_outputs, (
            f"shard {self.shard.id} has {file.rows} rows, not {self.shard.num_outputs}: a row was lost or doubled"
        )
        idle = RunStats(groups=group_stats(self.tools.engine.groups), wasted_tokens=self.in_flight.wasted_tokens)
        use = with_use(idle, self._block_use())

        def commit() -> None:
            self.tools.repository.commit_shard(self.shard.id, self.shard.epoch, file.key, file.sha256, file.rows, use)

        try:
            self._ask(commit)
        except Fenced:
            (self.out / file.key).unlink(missing_ok=True)
            raise

    def _release(self, reason: str, retry: Retry) -> None:
        self._ask(
            lambda: self.tools.repository.release_shard(
                self.shard.id,
                self.shard.epoch,
                reason=reason,
                preempted=retry.preempted,
                crashed=retry.crashed,
                delay_seconds=retry.in_seconds,
                wasted_tokens=self.in_flight.wasted_tokens,
            )
        )

    def _give_up(self, error: BaseException) -> None:
        log.exception("shard_failed job=%d shard=%d epoch=%d", self.job.id, self.shard.id, self.shard.epoch)
        settings = self.tools.settings
        retry = decide(
            error,
            self.shard.attempts,
            base_seconds=settings.restart_backoff_seconds,
            full_disk_seconds=settings.full_disk_seconds,
        )
        if is_full_disk(error):
            self.tools.disk.is_full(self.out)
            self.tools.gate.close(NO_ROOM)
        # A second failure must not hide the first, and what cannot be sealed is given back all the same.
        try:
            if self._recorder is not None and not isinstance(error, DatabaseDown) and not is_full_disk(error):
                self._recorder.seal()
        except Exception as second:  # noqa: BLE001 - most likely the first one again, whatever it was
            log.warning("rows of shard %d could not be sealed: %r", self.shard.id, second)
        try:
            self._release(f"{type(error).__name__}: {error}", retry)
        except StorageError as second:
            log.warning("shard %d could not be released, its lease will end: %s", self.shard.id, second)

    @property
    def recorder(self) -> Recorder:
        assert self._recorder is not None, "rows were finished before the attempt began"
        return self._recorder

    def _ask(self, question: Callable[[], T]) -> T:
        return until_answered(question, self.tools.stopping)
