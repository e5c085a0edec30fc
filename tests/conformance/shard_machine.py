"""Workers, zombies, reconciler, pauses and a cancel in any order on one job, against a model of what each may do.

The model knows the row count of every shard, the epoch that holds it, and what was sealed under the guard of an epoch.
After each step the database must agree with the model and with itself; at the end every row has ended exactly once.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from storage import migrate
from storage.errors import Fenced
from storage.records import Piece, Shard, ShardId
from storage.repository import Repository
from storage.states import JOB_RUNNABLE, SHARD_OPEN, JobState, ShardState
from tests.conformance.samples import LEASE, MANY, OVER, commit, queued_job, segment, stats_of

NUM_SHARDS = 2
ROWS = 3
MAX_ATTEMPTS = 3
workers = st.sampled_from(["gpu0@a", "gpu1@a"])
any_shard = st.integers(0, 10**6)  # modulo the number of shards, which grows by splits
any_attempt = st.integers(0, 10**6)  # modulo the number of attempts: mostly zombies, after a while


@functools.cache
def _migrated_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        migrate.upgrade(f"sqlite:///{folder}/migrated.db")
        return (Path(folder) / "migrated.db").read_bytes()


class ShardMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="nm-machine-"))
        (self.folder / "nightmill.db").write_bytes(_migrated_file())
        self.repository = Repository(f"sqlite:///{self.folder}/nightmill.db")
        self.attempts: list[Shard] = []  # as their workers know them; most are zombies in the end
        self.current: dict[ShardId, int] = {}  # the epoch that holds a running shard
        self.sealed: dict[ShardId, int] = {}  # rows
        self.seals: dict[tuple[ShardId, int], int] = {}  # segments of an attempt
        self.prompt_tokens = 0

    @initialize()
    def submit(self) -> None:
        job = queued_job(self.repository, num_shards=NUM_SHARDS, rows=ROWS, max_shard_attempts=MAX_ATTEMPTS)
        self.job_id = job.id
        self.shard_ids = [shard.id for shard in self.repository.shards(job.id)]
        self.sealed = dict.fromkeys(self.shard_ids, 0)

    # --- moves ----------------------------------------------------------------------------------------------

    @rule(window=st.integers(1, 3), stale=st.sampled_from([LEASE, OVER]))
    def dispatch(self, window: int, stale: float) -> None:
        hints = self.repository.dispatch(None, window, stale)

        assert not {hint.shard_id for hint in hints} & set(self.current)

    @rule(owner=workers, index=any_shard, lease=st.sampled_from([OVER, OVER, LEASE]), alone=st.booleans())
    def claim(self, owner: str, index: int, lease: float, alone: bool) -> None:
        before = self._shards()[index % len(self._shards())]

        claim = self.repository.claim_shard(before.id, owner, lease, alone=alone)

        if claim is not None:
            assert before.state in SHARD_OPEN
            assert claim.job.state is JobState.IN_PROGRESS
            assert alone or not before.is_suspect
            assert claim.shard.epoch == before.epoch + 1
            self.attempts.append(claim.shard)
            self.current[before.id] = claim.shard.epoch

    @rule(owner=workers, lease=st.sampled_from([LEASE, OVER]))
    def heartbeat(self, owner: str, lease: float) -> None:
        mine = {(shard.id, shard.epoch) for shard in self.attempts if shard.lease_owner == owner}

        beat = self.repository.heartbeat(owner, mine, lease)

        assert beat.held == {shard_id for shard_id, epoch in mine if self.current.get(shard_id) == epoch}

    @precondition(lambda self: self.attempts)
    @rule(pick=any_attempt, rows=st.integers(1, 2), repeated=st.booleans())
    def seal(self, pick: int, rows: int, repeated: bool) -> None:
        shard = self._attempt(pick)
        rows = min(rows, self._left(shard))
        if rows == 0:
            return
        seq = self.seals.get((shard.id, shard.epoch), 0)

        with self._guarded(shard):
            for _ in range(1 + repeated):  # a lost answer makes the worker ask again
                self.repository.seal_segment(shard.id, segment(shard, seq=seq, succeeded=rows), stats_of(rows))
            self.seals[shard.id, shard.epoch] = seq + 1
            self.sealed[shard.id] += rows
            self.prompt_tokens += 10 * rows

    @precondition(lambda self: self.attempts)
    @rule(pick=any_attempt)
    def commit(self, pick: int) -> None:
        shard = self._attempt(pick)
        if self._left(shard) or self._is_committed(shard):
            return

        with self._guarded(shard):
            commit(self.repository, shard, shard.num_outputs)
            commit(self.repository, shard, shard.num_outputs)
            del self.current[shard.id]

    @precondition(lambda self: self.attempts)
    @rule(pick=any_attempt, preempted=st.booleans(), crashed=st.booleans())
    def release(self, pick: int, preempted: bool, crashed: bool) -> None:
        shard = self._attempt(pick)
        if self.current.get(shard.id) != shard.epoch:
            return  # a repeated release is silent, a zombie's is fenced: the laws of shards test both

        crashed = crashed and not preempted
        self.repository.release_shard(shard.id, shard.epoch, reason="test", preempted=preempted, crashed=crashed)
        del self.current[shard.id]

    @rule()
    def expire(self) -> None:
        for shard in self.repository.expire_leases(MANY):
            assert self.current.pop(shard.id) == shard.epoch
            assert shard.crashes > 0

    @rule()
    def divide(self) -> None:
        for shard in self.repository.crashed_shards():
            left = self._left(shard)
            if left == 1:
                assert self.repository.give_up_shard(shard.id, shard.epoch)
                continue
            middle = min(shard.row_lo + 1, shard.row_hi - 1)
            pieces = [
                Piece(row_lo=shard.row_lo, row_hi=max(middle, shard.row_lo + 1), num_outputs=left // 2),
                Piece(row_lo=middle, row_hi=shard.row_hi, num_outputs=left - left // 2),
            ]
            assert self.repository.split_shard(shard.id, shard.epoch, pieces if left else [])
        for shard in self._shards():
            self.sealed.setdefault(shard.id, 0)

    @precondition(lambda self: len(self.attempts) >= 4)
    @rule(really=st.integers(0, 4))
    def cancel(self, really: int) -> None:
        if really == 0:
            self.repository.request_cancel(self.job_id)

    @rule(really=st.integers(0, 2))
    def pause(self, really: int) -> None:
        if really == 0 and self._job_state() in JOB_RUNNABLE:
            self.repository.pause_job(self.job_id)

    @rule()
    def resume(self) -> None:
        if self._job_state() is JobState.PAUSED:
            self.repository.resume_job(self.job_id)

    # --- laws -----------------------------------------------------------------------------------------------

    @invariant()
    def database_agrees_with_itself_and_the_model(self) -> None:
        self.repository.check_integrity()

        shards = self._shards()
        job = self.repository.get_job(self.job_id)
        assert {shard.id: shard.epoch for shard in shards if shard.state == ShardState.RUNNING} == self.current
        assert job.rows_succeeded == sum(self.sealed.values())
        stats, rows = self.repository.job_stats(self.job_id), sum(self.sealed.values())
        assert (stats.prompt_tokens, stats.planned_tokens) == (self.prompt_tokens, 9 * rows)
        assert stats.limited_by == ((("last token", rows), ("sliding", 2 * rows)) if rows else ())

    def teardown(self) -> None:
        try:
            if hasattr(self, "job_id"):
                self._run_to_the_end()
        finally:
            self.repository.close()
            shutil.rmtree(self.folder)

    def _run_to_the_end(self) -> None:
        self.resume()
        for shard in self._shards():
            if shard.state == ShardState.RUNNING:
                self.repository.heartbeat(str(shard.lease_owner), [(shard.id, shard.epoch)], OVER)
        self.expire()
        self.divide()
        for index, shard in enumerate(self._shards()):
            if shard.state in SHARD_OPEN:
                self.claim("gpu0@a", index, LEASE, True)
                self.seal(len(self.attempts) - 1, ROWS, False)
                self.commit(len(self.attempts) - 1)

        [waiting] = self.repository.advance_jobs()
        epoch = self.repository.claim_job(waiting.id, "reconciler", LEASE)
        assert epoch is not None
        job = self.repository.complete_job(waiting.id, epoch, "3a9")

        self.repository.check_integrity()
        assert job.state in {JobState.COMPLETED, JobState.CANCELLED, JobState.FAILED}
        assert job.rows_done == job.rows_total == NUM_SHARDS * ROWS
        assert job.rows_succeeded == sum(self.sealed.values())

    # --- below ----------------------------------------------------------------------------------------------

    def _job_state(self) -> JobState:
        return self.repository.get_job(self.job_id).state

    def _shards(self) -> list[Shard]:
        return self.repository.shards(self.job_id)

    def _left(self, shard: Shard) -> int:
        return shard.num_outputs - self.sealed[shard.id]

    def _attempt(self, pick: int) -> Shard:
        return self.attempts[pick % len(self.attempts)]

    def _is_committed(self, shard: Shard) -> bool:
        return any(found.id == shard.id and found.state == ShardState.DONE for found in self._shards())

    @contextlib.contextmanager
    def _guarded(self, shard: Shard) -> Iterator[None]:
        """The holder's move succeeds; anybody else's is fenced."""
        if self.current.get(shard.id) == shard.epoch:
            yield
        else:
            with pytest.raises(Fenced):
                yield
