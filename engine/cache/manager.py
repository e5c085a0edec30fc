"""All layer groups as one cache: what a request can take from it, what a sequence gets, what it leaves behind."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from engine.cache.base import GroupManager
from engine.cache.checkpoints import Checkpoints
from engine.cache.groups import LayerGroup
from engine.cache.kinds import Groups
from engine.cache.limits import explain
from engine.cache.prefix import PrefixNode
from engine.cache.tables import Checkpoint, Hit, Rank, SequenceBlocks
from engine.grid import ANYWHERE, Grid
from engine.request import Request
from engine.stats import BlockUse
from engine.step import NULL_BLOCK, BlockCopy


class KVCache:
    """Blocks and states of all sequences: found, shared, kept and given back in every group or in none.

    `allow_block_sharing` decides whether two sequences may ever use one block; `use_prefix_sharing` whether a prefill
    may be skipped. With the first alone, samples fork, and equal blocks are merged after each of them was computed.
    """

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        num_blocks: Sequence[int],  # per group, block 0 included; in a linear group, state slots
        *,
        max_chunk: int,
        allow_block_sharing: bool = True,
        use_prefix_sharing: bool = True,
        grid: Grid = ANYWHERE,
    ) -> None:
        self._groups = Groups(groups, num_blocks, max_chunk, grid)
        self._tree = self._groups.tree
        self._checkpoints = Checkpoints(self._groups)
        self.managers: tuple[GroupManager, ...] = self._groups.managers
        self.grid = grid
        self.shares_blocks = allow_block_sharing
        self.shares_prefixes = allow_block_sharing and use_prefix_sharing

    def new_sequence(self, job: str, prompt_len: int = 0) -> SequenceBlocks:
        return SequenceBlocks(job, len(self.managers), self.grid.shareable(prompt_len))

    def could_fit(self, num_tokens: int) -> bool:
        """Whether a sequence of this length could run alone in the empty cache."""
        return all(manager.peak_blocks(num_tokens) <= manager.pool.capacity for manager in self.managers)

    def most_sequences(self) -> float:
        """How many may run at once: of the state slots, a fifth is for checkpoints."""
        slots = self._groups.num_slots
        return slots - slots // 5 if self.shares_blocks else slots

    def take_copies(self) -> tuple[BlockCopy, ...]:
        """What must be copied before the next forward pass, in this order."""
        return self._checkpoints.take_copies()

    # -- finding and starting

    def find(self, tokens: Sequence[int], seq: SequenceBlocks | None = None) -> Hit:
        """The longest common hit, also in what is kept for `seq`; never the last token, which must run to give logits.

        Changes nothing.
        """
        kept = seq.kept if seq is not None else None
        if not self.shares_prefixes and kept is None:
            return Hit(0, [], tuple([] for _ in self.managers), None, False, None, 0)
        path = self._tree.walk(tokens, len(tokens) - 1)
        shared, length, checkpoint, pending = 0, 0, None, None
        if self.shares_prefixes:
            shared = self._groups.common(path, len(path) * self._tree.unit)
            length = 0 if self._groups.has_states else shared
            ready, pending = self._checkpoints.best(path, tokens)
            if ready is not None and ready.length > length:
                length, checkpoint = ready.length, ready
        is_kept = kept is not None and kept.length > length and self._can_start_at(kept, path)
        if kept is not None and is_kept:
            length, checkpoint = kept.length, kept
        return Hit(
            length=length,
            path=path,
            blocks=self._whole_blocks(path, length, checkpoint),
            checkpoint=checkpoint,
            takes_over=checkpoint is not None and seq is not None and seq.is_last_at(checkpoint),
            computing=None if is_kept else self._computing(path, length, pending),
            shared=shared,
        )

    def _computing(
        self, path: list[PrefixNode], length: int, pending: Checkpoint | None
    ) -> Checkpoint | PrefixNode | None:
        """What a running sequence will have made soon, and is worth waiting for."""
        if self.shares_prefixes and not self._groups.has_states:
            for node in reversed(path[length // self._tree.unit :]):
                if node.owner is not None:
                    return node
        return pending if pending is not None and pending.length > length else None

    def _can_start_at(self, kept: Checkpoint, path: list[PrefixNode]) -> bool:
        return kept.is_ready and (kept.is_whole or self._groups.can_go_on(path, kept.length))

    def _whole_blocks(
        self, path: list[PrefixNode], length: int, checkpoint: Checkpoint | None
    ) -> tuple[list[int], ...]:
        if checkpoint is None or not checkpoint.is_whole:
            return tuple(manager.hit_blocks(path, length) for manager in self.managers)
        return tuple(
            table.blocks[: manager.num_whole(length)]
            for manager, table in zip(self.managers, checkpoint.tables, strict=True)
        )

    def _num_taken_over(self, hit: Hit) -> list[int]:
        """Per group, blocks that come with the checkpoint itself."""
        return [int(hit.takes_over and manager.own_at(hit.length) is not None) for manager in self.managers]

    def blocks_needed(self, hit: Hit, num_tokens: int, num_missing: int) -> tuple[int, ...]:
        """Free blocks per group that a sequence takes while it runs what the hit leaves and grows to `num_tokens`."""
        needs = []
        for manager, blocks, own in zip(self.managers, hit.blocks, self._num_taken_over(hit), strict=True):
            in_use = sum(1 for block in blocks if block != NULL_BLOCK) - manager.num_waking(blocks)
            needs.append(max(0, manager.peak_blocks(num_tokens, num_missing) - in_use - own))
        return tuple(needs)

    def admit(self, seq: SequenceBlocks, tokens: Sequence[int], hit: Hit, end: int) -> bool:
        """Take the hit and room for the positions below `end`, in every group or in none."""
        assert not seq.path, "a running sequence takes no new hits"
        for manager, blocks, own in zip(self.managers, hit.blocks, self._num_taken_over(hit), strict=True):
            if manager.num_waking(blocks) + manager.num_missing(blocks, end) - own > manager.pool.num_free:
                return False
        # The hits of all groups come first: a fresh block of one must not evict the hit of another.
        for manager, table, blocks in zip(self.managers, seq.tables, hit.blocks, strict=True):
            manager.take_hit(table, blocks, seq.job)
        if hit.takes_over:
            self._checkpoints.hand_over(seq, hit)
        if self.shares_blocks:
            self._claim_path(seq, tokens, hit)
        self._allocate(seq, end)
        if hit.checkpoint is not None and not hit.takes_over:
            self._checkpoints.copy_to(seq, hit)
        self._begin(seq, tokens, hit)
        return True

    def _claim_path(self, seq: SequenceBlocks, tokens: Sequence[int], hit: Hit) -> None:
        """Pin the hit's path; with prefix sharing, also announce the prefixes that this sequence will compute."""
        unit = self._tree.unit
        seq.num_registered = hit.length // unit
        seq.path = hit.path[: seq.num_registered]
        if seq.path:
            seq.path[-1].pins += 1
        end = len(tokens) if self.shares_prefixes else hit.length
        self._extend_path(seq, tokens, end)
        if self.shares_prefixes and not self._groups.has_states:
            for node in seq.path[seq.num_registered :]:
                if node.owner is None:
                    node.owner = seq

    def _extend_path(self, seq: SequenceBlocks, tokens: Sequence[int], end: int) -> None:
        """Let the path reach as many whole units as `end` tokens have, and pin its last node."""
        unit = self._tree.unit
        path = seq.path
        pinned = path[-1] if path else None
        node = pinned or self._tree.root
        for at in range(len(path) * unit, end - unit + 1, unit):
            node = self._tree.child(node, tuple(tokens[at : at + unit]))
            path.append(node)
        if node is not pinned and path:
            node.pins += 1
            if pinned is not None:
                pinned.pins -= 1

    def _begin(self, seq: SequenceBlocks, tokens: Sequence[int], hit: Hit) -> None:
        """The sequence has started: what the plan said of it comes true, and what it will keep for others is clear."""
        self._checkpoints.strike_kept(seq)
        planned = self._checkpoints.at(seq.path, tokens, seq.planned) if self.shares_prefixes else None
        if not seq.has_started:
            seq.limits = explain(self._groups, hit, seq, planned, self.shares_prefixes)
            if self.shares_prefixes:
                self._checkpoints.expect(seq, tokens)
                if self._groups.has_states and hit.shared > hit.length:
                    self._checkpoints.suspect(seq, tokens, hit.shared)
            if planned is not None and seq.uses(planned):
                self._checkpoints.strike(seq, planned)
            seq.has_started = True
        if self.shares_prefixes:
            self._checkpoints.claim(seq, tokens, hit.length)

    # -- running

    def extend(self, seq: SequenceBlocks, computed: int, end: int) -> bool:
        """Room for the positions below `end`, in every group or in none. What the window has left is given back."""
        if end <= seq.room:
            return True
        fits = True
        for manager, table in zip(self.managers, seq.tables, strict=True):
            manager.drop_behind(table, computed, seq.job)
            fits = fits and manager.num_missing(table.blocks, end) <= manager.pool.num_free
        if fits:
            self._allocate(seq, end)
        return fits

    def _allocate(self, seq: SequenceBlocks, end: int) -> None:
        missing = [
            manager.num_missing(table.blocks, end) for manager, table in zip(self.managers, seq.tables, strict=True)
        ]
        self._groups.allocate(seq.tables, missing, seq.job)
        seq.room = min(manager.room(table) for manager, table in zip(self.managers, seq.tables, strict=True))

    def next_stop(self, seq: SequenceBlocks) -> int | None:
        """Where the next chunk must end: a state is kept there, and can be copied only while it is the newest."""
        return seq.stops[-1].length if seq.stops and self._groups.has_states else None

    def commit(self, seq: SequenceBlocks, tokens: Sequence[int], computed: int) -> None:
        """Register what the step has completed, and keep what was asked for. Until now nobody could take it."""
        unit, end = self._tree.unit, int(min(computed, seq.shareable))
        if self.shares_blocks and self._groups.with_blocks and end >= (seq.num_registered + 1) * unit:
            self._extend_path(seq, tokens, end)
            for index in range(seq.num_registered, end // unit):
                node = seq.path[index]
                for manager, table in zip(self.managers, seq.tables, strict=True):
                    manager.register(table, index, node, seq.job)
                if node.owner is seq:
                    node.owner = None
            seq.num_registered = end // unit
        if seq.stops:
            self._checkpoints.complete(seq, computed)

    def fork(self, seq: SequenceBlocks, computed: int, num_siblings: int) -> Checkpoint | None:
        """Where so many siblings can start after what was committed last; None without room to keep it."""
        return self._checkpoints.fork(seq, computed, num_siblings)

    # -- giving back

    def suspend(self, seq: SequenceBlocks, computed: int) -> None:
        """Give the blocks back, but keep what no other sequence could let this one go on from."""
        if self.shares_prefixes and computed <= seq.shareable:
            self._checkpoints.suspend(seq, computed)
        self.release(seq)

    def release(self, seq: SequenceBlocks) -> None:
        """Give everything back. Registered content stays cached until its block is needed."""
        self._checkpoints.disown(seq)
        self._groups.release(seq.tables, seq.job)
        seq.room = 0
        path, seq.path, seq.num_registered = seq.path, [], 0
        if path:
            path[-1].pins -= 1
            for node in reversed(path):
                if node.owner is seq:
                    node.owner = None
            self._tree.prune(path[-1])

    def leave(self, seq: SequenceBlocks, tokens: Sequence[int]) -> None:
        """The sequence has ended: nothing is kept for it. If it never started, others make what it was to make."""
        self._checkpoints.strike_kept(seq)
        if not seq.has_started and self.shares_prefixes:
            self._extend_path(seq, tokens, max((seq.planned, *(junction.length for junction in seq.junctions))))
            self._checkpoints.excuse(seq, tokens)
            self.release(seq)
        seq.has_started = True

    def skip(self, request: Request, plan: Hashable) -> None:
        """It will never run; what the plan says of it is as when it ends before it has started."""
        seq = self.new_sequence(request.job, len(request.prompt))
        seq.follow(plan, request.planned_tokens, request.junctions, self.grid)
        self.leave(seq, request.prompt)

    def reclaim(self, highest: Rank) -> bool:
        """Give up one checkpoint up to this rank; False if none would free anything."""
        return self._checkpoints.reclaim(highest)

    def make_way(self, hit: Hit, running: Sequence[SequenceBlocks]) -> bool:
        """Give up one checkpoint, that of `hit` last, if it may go for a sequence that is to start beside these."""
        return self._checkpoints.make_way(hit, running)

    def end_plan(self, plan: Hashable) -> None:
        self._checkpoints.forget_plan(plan)

    # -- figures

    def record_step(self) -> None:
        for manager in self.managers:
            manager.use.record_step()

    def block_use(self, job: str) -> tuple[BlockUse, ...]:
        return tuple(manager.use.of(job) for manager in self.managers)

    def check_integrity(self) -> None:
        self._groups.check_integrity()
        self._checkpoints.check_integrity()

    def check_references(self, running: Sequence[SequenceBlocks]) -> None:
        """No block is in use but by these sequences and by checkpoints."""
        self._groups.check_references([*(seq.tables for seq in running), *self._checkpoints.tables()])
