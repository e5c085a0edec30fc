"""Simulated processes: what worker, heartbeat, reconciler and finaliser do, as generators that can stop at any yield.

They follow jobs/shard.py, jobs/leases.py, jobs/reconciler.py and storage/parquet/publisher.py step by step; a shard has
rows instead of prompts and a file is a tuple of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.gate import Gate
from jobs.leases import Lease, LeaseKeeper
from storage import layout
from storage.errors import DatabaseDown, Fenced
from storage.records import Beat, Job, Piece, RunStats, Segment, Shard, ShardId
from storage.states import RowStatus, ShardState
from tests.faults.world import LEASE, MAX_CRASHES, Network, World

Steps = Iterator[None]
SLOTS = 2
MANY = 1000  # sequences: slots alone limit what a worker takes


class Worker:
    """One worker process: a heartbeat and some attempts. A new one takes over what an old one of its name held."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.network = Network()
        self.wakes_at = 0.0  # of the steady clock; it is stopped until then
        self.draining = False
        self.gate = Gate(slots=SLOTS, target=MANY, on_open=lambda: None)
        self.leases = LeaseKeeper(
            self,  # type: ignore[arg-type] - it asks for two things, and this is who answers
            name,
            "boot",
            lease_seconds=LEASE,
            heartbeat_seconds=1.0,
            monotonic=lambda: world.clock.steady,
        )
        self.running: dict[ShardId | None, Steps] = {None: self._take_over()}

    # --- what the lease keeper asks ---------------------------------------------------------------------------
    def heartbeat(self, owner: str, held: Any, lease_seconds: float) -> Beat:
        return self.world.ask_now(self.network, lambda: self.world.repository.heartbeat(owner, held, lease_seconds))

    def beat_worker(self, *_: Any) -> bool:
        """Nobody looks at it here."""
        return False

    # --- steps ------------------------------------------------------------------------------------------------
    def beat(self) -> None:
        try:
            self.leases.beat()
        except DatabaseDown:
            self.world.log.append(f"{self.name} beat without answer")

    def take_hint(self) -> None:
        """A hint leaves the queue and lives in this process alone."""
        world = self.world
        full = len(self.running) >= SLOTS or self.draining or None in self.running
        if full or not world.queue or self.leases.silent_for >= LEASE:
            return
        hint = world.queue.pop(0)
        if self.gate.enter(hint.shard_id, alone=hint.alone):  # else a doubled hint
            self.running[hint.shard_id] = self._attempt(hint.shard_id, hint.alone)

    def step(self) -> None:
        """One step of one of its attempts."""
        if not self.running:
            return
        key = self.world.random.choice(list(self.running))
        try:
            next(self.running[key])
        except StopIteration:
            del self.running[key]
            if key is not None:
                self.gate.leave(key)

    def _take_over(self) -> Steps:
        world = self.world
        for shard in (yield from world.ask(self.network, lambda: world.repository.shards(world.job_id))):
            if shard.state is ShardState.RUNNING and shard.lease_owner == self.name:
                try:
                    yield from self._release(shard, preempted=False)
                except Fenced:
                    continue

    def _attempt(self, shard_id: ShardId, alone: bool) -> Steps:
        world = self.world
        while not self.gate.has_turn(shard_id):
            yield

        def claim() -> Any:
            claim = world.repository.claim_shard(shard_id, self.name, LEASE, alone=alone)
            if claim is not None:
                world.claims.append((shard_id, claim.shard.epoch))
                world.log.append(f"{self.name} claimed {shard_id} epoch {claim.shard.epoch}")
            return claim

        claimed = yield from world.ask(self.network, claim)
        if claimed is None:
            return
        lease = self.leases.hold(shard_id, claimed.shard.epoch)
        try:
            yield from self._work(claimed.shard, lease)
        except Fenced as error:
            world.log.append(f"{self.name} fenced: {error}")
        self.leases.drop(lease)

    def _work(self, shard: Shard, lease: Lease) -> Steps:
        world = self.world
        segments = yield from world.ask(self.network, lambda: world.repository.segments(shard.id))
        keys = [segment.key for segment in segments]
        inherited = yield from world.ask(self.network, lambda: world.repository.parent_segments(shard.id))
        sealed = {row for key in (*keys, *(each.key for each in inherited)) for row in world.files[key]}
        left = [row for row in range(shard.row_lo, shard.row_hi) if row not in sealed]
        seq = 0
        while left:
            yield
            if lease.lost:
                raise Fenced("the heartbeat said so")
            if lease.cancelled or self.draining:
                yield from self._release(shard, preempted=True)
                return
            size = world.random.randint(1, 2)
            rows, left = left[:size], left[size:]
            keys.append((yield from self._seal(shard, seq, rows)))
            seq += 1
        yield from self._commit(shard, keys)

    def _seal(self, shard: Shard, seq: int, rows: list[int]) -> Steps:
        world = self.world
        key = layout.segment(shard.idx, shard.epoch, seq)
        world.files[key] = tuple(rows)
        segment = Segment(seq=seq, key=key, sha256=key, rows=len(rows), epoch=shard.epoch, succeeded=len(rows))
        stats = RunStats(rows=len(rows), prompt_tokens=10 * len(rows), computed_tokens=10 * len(rows))
        yield from world.ask(self.network, lambda: world.repository.seal_segment(shard.id, segment, stats))
        return key

    def _commit(self, shard: Shard, keys: list[str]) -> Steps:
        world = self.world
        key = layout.shard_file(shard.idx, shard.epoch)
        rows = tuple(sorted({row for sealed in keys for row in world.files[sealed]}))
        assert len(rows) == shard.num_outputs, f"shard {shard.id} has {rows}: a row was lost or doubled"
        world.files[key] = rows
        commit = world.repository.commit_shard
        try:
            yield from world.ask(self.network, lambda: commit(shard.id, shard.epoch, key, key, len(rows), RunStats()))
        except Fenced:
            world.files.pop(key, None)
            raise
        world.log.append(f"{self.name} committed {shard.id} epoch {shard.epoch}")

    def _release(self, shard: Shard, *, preempted: bool) -> Steps:
        release = self.world.repository.release_shard
        yield from self.world.ask(
            self.network, lambda: release(shard.id, shard.epoch, reason="simulated", preempted=preempted)
        )


class Reconciler:
    """Expires, publishes and dispatches, for ever."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.network = Network()
        self.wakes_at = 0.0
        self._steps = self._run()

    def step(self) -> None:
        next(self._steps)

    def _run(self) -> Steps:
        world, repository = self.world, self.world.repository
        while True:
            yield from world.ask(self.network, lambda: repository.expire_leases(MAX_CRASHES))
            for shard in (yield from world.ask(self.network, repository.crashed_shards)):
                yield from self._divide(shard)
            for job in (yield from world.ask(self.network, repository.advance_jobs)):
                try:
                    yield from self._publish(job)
                except Fenced as error:
                    world.log.append(f"{self.name} fenced: {error}")
            hints = yield from world.ask(self.network, lambda: repository.dispatch(None, 2, 3 * LEASE))
            for hint in hints:
                yield
                world.queue.append(hint)

    def _divide(self, shard: Shard) -> Steps:
        """The first row that is not sealed was in the engine, alone; the others wait for a life of their own."""
        world, repository = self.world, self.world.repository
        own = yield from world.ask(self.network, lambda: repository.segments(shard.id))
        inherited = yield from world.ask(self.network, lambda: repository.parent_segments(shard.id))
        sealed = {row for each in (*own, *inherited) for row in world.files[each.key]}
        left = [row for row in range(shard.row_lo, shard.row_hi) if row not in sealed]
        if len(left) == 1 and shard.row_hi - shard.row_lo == 1:
            yield from world.ask(self.network, lambda: repository.give_up_shard(shard.id, shard.epoch))
            return
        parts = [part for part in (left[:1], left[1:]) if part]
        pieces = [Piece(row_lo=part[0], row_hi=part[-1] + 1, num_outputs=len(part)) for part in parts]
        yield from world.ask(self.network, lambda: repository.split_shard(shard.id, shard.epoch, pieces))
        world.log.append(f"{self.name} divided {shard.id} into {parts}")

    def _publish(self, job: Job) -> Steps:
        world, repository = self.world, self.world.repository
        epoch = yield from world.ask(self.network, lambda: repository.claim_job(job.id, self.name, LEASE))
        if epoch is None:
            return
        content = world.manifest
        if content is None:
            content = yield from self._content(job)
            yield from world.ask(self.network, lambda: repository.renew_job(job.id, epoch, LEASE))
            yield  # a finaliser that sleeps here writes its manifest whenever it wakes
            assert world.manifest in (None, content), "a manifest changed after it was published"
            world.manifest = content
        yield from world.ask(self.network, lambda: repository.complete_job(job.id, epoch, str(content)))
        world.log.append(f"{self.name} completed the job under epoch {epoch}")

    def _content(self, job: Job) -> Iterator[None]:
        """What the shards' records say of each row; the same for every finaliser."""
        world, repository = self.world, self.world.repository
        content: dict[int, str] = {}
        shards = yield from world.ask(self.network, lambda: repository.shards(job.id))
        for shard in shards:
            if shard.state is ShardState.DONE:
                keys = [str(shard.out_key)]
            else:
                segments = yield from world.ask(self.network, lambda shard=shard: repository.segments(shard.id))
                keys = [segment.key for segment in segments]
            for key in keys:
                assert key in world.files, f"{key} is recorded and is not there"
                rows = dict.fromkeys(world.files[key], str(RowStatus.SUCCEEDED))
                assert not content.keys() & rows.keys(), "a row was published twice"
                assert shard.state is not ShardState.DONE or len(rows) == shard.num_outputs, f"{shard} is not whole"
                content |= rows
        for shard in shards:
            if shard.state in (ShardState.DEAD, ShardState.CANCELLED):
                lost = RowStatus.ERRORED if shard.state is ShardState.DEAD else RowStatus.CANCELED
                content = dict.fromkeys(range(shard.row_lo, shard.row_hi), str(lost)) | content
        return content
