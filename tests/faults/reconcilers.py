"""Simulated reconcilers: they expire, divide, publish, reopen and dispatch, and can stop at any yield.

They follow jobs/reconciler.py, jobs/damage.py and storage/parquet/publisher.py step by step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from storage.errors import Fenced
from storage.records import Damage, Job, Piece, Segment, Shard, ShardId
from storage.states import JOB_STOPPING, RowStatus, ShardState
from tests.faults.processes import Steps
from tests.faults.world import LEASE, MAX_REOPENINGS, ROTTEN, Network, World


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
            yield from world.ask(self.network, lambda: repository.expire_leases(world.max_crashes))
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
        lost = {each.epoch for each in own if each.key in world.rotten}
        if lost:
            try:
                yield from world.ask(
                    self.network, lambda: repository.drop_segments(shard.id, shard.epoch, lost, ROTTEN)
                )
            except Fenced:
                return
            own = [each for each in own if each.epoch not in lost]
        if any(each.key in world.rotten for each in inherited):
            yield from world.ask(self.network, lambda: repository.fail_job(shard.job_id, None, ROTTEN))
            return
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
        job = yield from world.ask(self.network, lambda: repository.get_job(job.id))
        shards = yield from world.ask(self.network, lambda: repository.shards(job.id))
        reopenings = sum(shard.reopenings for shard in shards)
        content = world.manifest if world.reopenings == reopenings else None
        if content is None:
            files = yield from self._files(shards)
            if any(key in world.rotten for keys in files.values() for key in keys):
                yield from self._reopen(job, epoch, shards, files)
                return
            content = self._content(shards, files)
            yield from world.ask(self.network, lambda: repository.renew_job(job.id, epoch, LEASE))
            yield  # a finaliser that sleeps here writes its manifest whenever it wakes
            if world.reopenings > reopenings:
                raise Fenced("rows have run again since")
            unchanged = world.manifest in (None, content) or world.reopenings < reopenings
            assert unchanged, "a manifest changed after it was published"
            world.manifest, world.reopenings = content, reopenings
        yield from world.ask(self.network, lambda: repository.complete_job(job.id, epoch, str(content)))
        world.log.append(f"{self.name} completed the job under epoch {epoch}")

    def _files(self, shards: Sequence[Shard]) -> Iterator[None]:
        """Of each shard, the keys that hold its rows."""
        world, repository = self.world, self.world.repository
        files: dict[ShardId, list[str]] = {}
        for shard in shards:
            if shard.state is ShardState.DONE:
                files[shard.id] = [str(shard.out_key)]
            else:
                segments = yield from world.ask(self.network, lambda shard=shard: repository.segments(shard.id))
                files[shard.id] = [segment.key for segment in segments]
        return files

    def _content(self, shards: Sequence[Shard], files: dict[ShardId, list[str]]) -> dict[int, str]:
        """What the shards' records say of each row; the same for every finaliser."""
        world = self.world
        content: dict[int, str] = {}
        for shard in shards:
            for key in files[shard.id]:
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

    # --- damaged files ----------------------------------------------------------------------------------------
    def _reopen(self, job: Job, epoch: int, shards: Sequence[Shard], files: dict[ShardId, list[str]]) -> Steps:
        world, repository = self.world, self.world.repository
        hit = [shard for shard in shards if any(key in world.rotten for key in files[shard.id])]
        hit = [shard for shard in hit if shard.state is not ShardState.SPLIT] or hit
        damages, hopeless = [], any(shard.reopenings >= MAX_REOPENINGS for shard in hit)
        for shard in hit if not hopeless else ():
            own = yield from world.ask(self.network, lambda shard=shard: repository.segments(shard.id))
            lost = tuple(sorted({each.epoch for each in own if each.key in world.rotten}))
            pieces: list[Piece] | None = []
            if shard.state is ShardState.SPLIT:
                pieces = yield from self._lost_pieces(job, shard, own, lost)
            if pieces is None:
                hopeless = True
                break
            damages.append(
                Damage(shard_id=shard.id, epoch=shard.epoch, error=ROTTEN, attempts=lost, pieces=tuple(pieces))
            )
        if hopeless:
            yield from world.ask(self.network, lambda: repository.fail_job(job.id, epoch, ROTTEN))
        else:
            yield from world.ask(self.network, lambda: repository.reopen_shards(job.id, epoch, damages))
            world.log.append(f"{self.name} reopened {[damage.shard_id for damage in damages]} under epoch {epoch}")

    def _lost_pieces(self, job: Job, shard: Shard, own: Sequence[Segment], lost: tuple[int, ...]) -> Iterator[None]:
        """Rows of a split shard that nobody else holds, or None if that cannot be told."""
        world, repository = self.world, self.world.repository
        num_lost = sum(each.rows for each in own if each.epoch in lost)
        if job.state in JOB_STOPPING or job.cancel_requested:
            return [Piece(row_lo=shard.row_lo, row_hi=shard.row_hi, num_outputs=num_lost)]
        shards = yield from world.ask(self.network, lambda: repository.shards(job.id))
        above = yield from world.ask(self.network, lambda: repository.parent_segments(shard.id))
        parts, held = [shard], [*above, *(each for each in own if each.epoch not in lost)]
        dead: set[int] = set()
        for part in parts:
            for child in shards:
                if child.parent_id == part.id:
                    parts.append(child)
                    held += yield from world.ask(self.network, lambda child=child: repository.segments(child.id))
                    dead |= set(range(child.row_lo, child.row_hi)) if child.state is ShardState.DEAD else set()
        if any(each.key in world.rotten for each in held):
            return None
        known = dead.union(*(world.files[each.key] for each in held))
        missing = [row for row in range(shard.row_lo, shard.row_hi) if row not in known]
        if len(missing) != num_lost:
            return None
        return [Piece(row_lo=row, row_hi=row + 1, num_outputs=1) for row in missing]
