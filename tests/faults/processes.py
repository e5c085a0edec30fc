"""Simulated workers: what an attempt and a heartbeat do, as generators that can stop at any yield.

They follow jobs/shard.py and jobs/leases.py step by step; a shard has rows instead of prompts and a file is a tuple of
rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jobs.gate import Gate
from jobs.leases import Lease, LeaseKeeper
from storage import layout
from storage.errors import DatabaseDown, Fenced
from storage.records import Beat, RunStats, Segment, Shard, ShardId
from storage.states import ShardState
from tests.faults.world import LEASE, ROTTEN, Network, World

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

        world.serial += 1
        claim_id = f"{self.name}-{world.serial}"

        def claim() -> Any:
            claim = world.repository.claim_shard(shard_id, self.name, LEASE, alone=alone, claim_id=claim_id)
            if claim is not None:
                world.claims[claim_id] = (shard_id, claim.shard.epoch)
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
        lost = {segment.epoch for segment in segments if segment.key in world.rotten}
        if lost:
            drop = world.repository.drop_segments
            yield from world.ask(self.network, lambda: drop(shard.id, shard.epoch, lost, ROTTEN))
        keys = [segment.key for segment in segments if segment.epoch not in lost]
        inherited = yield from world.ask(self.network, lambda: world.repository.parent_segments(shard.id))
        if any(each.key in world.rotten for each in inherited):
            yield from self._release(shard, preempted=False)
            return
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
        if any(sealed in world.rotten for sealed in keys):
            yield from self._release(shard, preempted=False)
            return
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
