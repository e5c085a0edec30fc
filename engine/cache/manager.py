"""All layer groups as one cache: what a request can take from it, what a sequence gets, what it leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from engine.cache.base import GroupManager, GroupTable
from engine.cache.full import FullManager
from engine.cache.groups import LayerGroup
from engine.cache.linear import LinearManager, SlotPool
from engine.cache.pool import BlockPool
from engine.cache.prefix import PrefixNode, PrefixTree
from engine.cache.sliding import SlidingManager
from engine.request import GroupCounters
from engine.stats import BlockUse
from engine.step import NULL_BLOCK

_ORDER = ("full", "linear", "sliding")  # the fixed point ends soonest if the simplest rules cut first


def _manager(group: LayerGroup, size: int, tree: PrefixTree, max_chunk: int) -> GroupManager:
    """`size` counts blocks or state slots, id 0 included."""
    if group.kind == "linear":
        return LinearManager(group, SlotPool(size))
    kind = FullManager if group.kind == "full" else SlidingManager
    return kind(group, BlockPool(size), tree, max_chunk)


@dataclass(frozen=True, slots=True)
class Hit:
    """The longest prefix that every group can resume from, and what each would take for it."""

    length: int  # tokens
    path: list[PrefixNode]  # every known node, also beyond `length`
    blocks: tuple[list[int], ...]  # per group
    computing: PrefixNode | None  # the longest prefix beyond `length` that a running sequence is computing


class SequenceBlocks:
    """One sequence's tables in all groups. Empty while the sequence waits; the counters outlive a preemption."""

    __slots__ = ("job", "num_registered", "path", "room", "tables", "views")

    def __init__(self, job: str, num_groups: int) -> None:
        self.job = job
        self.tables = tuple(GroupTable() for _ in range(num_groups))
        self.views = tuple(table.blocks for table in self.tables)  # what the runner reads
        self.room = 0  # tokens that the tables can hold in every group
        self.path: list[PrefixNode] = []  # one node per unit; the last one is pinned
        self.num_registered = 0  # units whose blocks are registered

    def counters(self) -> tuple[GroupCounters, ...]:
        return tuple(table.counters() for table in self.tables)


class KVCache:
    """The managers of all groups under one prefix tree.

    `allow_block_sharing` decides whether two sequences may ever use one block; `use_prefix_sharing` whether a prefill
    may be skipped. With the first alone, equal blocks are merged after each of them was computed.
    """

    def __init__(
        self,
        groups: Sequence[LayerGroup],
        num_blocks: Sequence[int],  # per group, block 0 included; in a linear group, state slots
        *,
        max_chunk: int,
        allow_block_sharing: bool = True,
        use_prefix_sharing: bool = True,
    ) -> None:
        sizes = [group.block_size for group in groups if group.has_blocks]
        self._tree = PrefixTree(gcd(*sizes) or 1, len(groups))
        self.managers: tuple[GroupManager, ...] = tuple(
            _manager(group, size, self._tree, max_chunk) for group, size in zip(groups, num_blocks, strict=True)
        )
        self._share_blocks = allow_block_sharing and bool(sizes)
        # A prefill may be skipped only where every group can go on. A linear group keeps no state of a prefix, so with
        # one of those each sequence runs from its first token; blocks that turn out equal are merged all the same.
        self.shares_prefixes = (
            self._share_blocks and use_prefix_sharing and all(manager.can_resume for manager in self.managers)
        )
        self._by_kind = sorted(self.managers, key=lambda manager: _ORDER.index(manager.group.kind))

    def new_sequence(self, job: str) -> SequenceBlocks:
        return SequenceBlocks(job, len(self.managers))

    def could_fit(self, num_tokens: int) -> bool:
        """Whether a sequence of this length could run alone in the empty cache."""
        return all(manager.peak_blocks(num_tokens) <= manager.pool.capacity for manager in self.managers)

    def num_free(self) -> tuple[int, ...]:
        return tuple(manager.pool.num_free for manager in self.managers)

    def find(self, tokens: Sequence[int]) -> Hit:
        """The longest common hit; never the last token, which must run to give logits. Changes nothing."""
        if not self.shares_prefixes:
            return Hit(0, [], tuple([] for _ in self.managers), None)
        path = self._tree.walk(tokens, len(tokens) - 1)
        length = self._common(path, len(path) * self._tree.unit)
        blocks = tuple(manager.hit_blocks(path, length) for manager in self.managers)
        beyond = path[length // self._tree.unit :]
        computing = next((node for node in reversed(beyond) if node.owner is not None), None)
        return Hit(length, path, blocks, computing)

    def _common(self, path: list[PrefixNode], limit: int) -> int:
        """Fixed point over the groups. The answer is valid in each, so none ever cuts below it."""
        before = -1
        while limit != before:
            before = limit
            for manager in self._by_kind:
                limit = manager.longest_valid(path, limit)
        return limit

    def blocks_needed(self, hit: Hit, num_tokens: int, num_missing: int) -> tuple[int, ...]:
        """Free blocks per group that a sequence takes while it runs what the hit leaves and grows to `num_tokens`."""
        needs = []
        for manager, blocks in zip(self.managers, hit.blocks, strict=True):
            in_use = sum(1 for block in blocks if block != NULL_BLOCK) - manager.num_waking(blocks)
            needs.append(max(0, manager.peak_blocks(num_tokens, num_missing) - in_use))
        return tuple(needs)

    def admit(self, seq: SequenceBlocks, tokens: Sequence[int], hit: Hit, end: int) -> bool:
        """Take the hit and room for the positions below `end`, in every group or in none."""
        assert not seq.path, "a running sequence takes no new hits"
        for manager, blocks in zip(self.managers, hit.blocks, strict=True):
            if manager.num_waking(blocks) + manager.num_missing(blocks, end) > manager.pool.num_free:
                return False
        # The hits of all groups come first: a fresh block of one must not evict the hit of another.
        for manager, table, blocks in zip(self.managers, seq.tables, hit.blocks, strict=True):
            manager.take_hit(table, blocks, seq.job)
        if self._share_blocks:
            self._claim_path(seq, tokens, hit)
        self._allocate(seq, end)
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
        if self.shares_prefixes:
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
        for manager, table in zip(self.managers, seq.tables, strict=True):
            for node in manager.allocate(table, manager.num_missing(table.blocks, end), seq.job):
                if manager.needs_ancestors:
                    self._forget_beyond(node, seq)
                self._tree.prune(node)
        seq.room = min(manager.room(table) for manager, table in zip(self.managers, seq.tables, strict=True))

    def _forget_beyond(self, node: PrefixNode, seq: SequenceBlocks) -> None:
        """A full group has lost this prefix: no longer one can be resumed, so the other groups' blocks are dead too.

        What a running sequence uses stays; it holds the prefix in every group, so nothing of that kind is found here
        except by a sequence that computes the prefix anew.
        """
        stack, leaves = [node], []
        while stack:
            dead = stack.pop()
            for manager, table in zip(self.managers, seq.tables, strict=True):
                manager.vacate(table, dead)
            stack.extend(dead.children.values())
            if not dead.children:
                leaves.append(dead)
        for leaf in leaves:
            self._tree.prune(leaf)

    def commit(self, seq: SequenceBlocks, tokens: Sequence[int], computed: int) -> None:
        """Register what the step has completed. Until now nobody could take it."""
        unit = self._tree.unit
        if not self._share_blocks or computed < (seq.num_registered + 1) * unit:
            return
        self._extend_path(seq, tokens, computed)
        for index in range(seq.num_registered, computed // unit):
            node = seq.path[index]
            for manager, table in zip(self.managers, seq.tables, strict=True):
                manager.register(table, index, node, seq.job)
            if node.owner is seq:
                node.owner = None
        seq.num_registered = computed // unit

    def release(self, seq: SequenceBlocks) -> None:
        """Give everything back. Registered content stays cached until its block is needed."""
        for manager, table in zip(self.managers, seq.tables, strict=True):
            manager.release(table, seq.job)
        seq.room = 0
        path, seq.path, seq.num_registered = seq.path, [], 0
        if path:
            path[-1].pins -= 1
            for node in reversed(path):
                if node.owner is seq:
                    node.owner = None
            self._tree.prune(path[-1])

    def record_step(self) -> None:
        for manager in self.managers:
            manager.use.record_step()

    def block_use(self, job: str) -> tuple[BlockUse, ...]:
        return tuple(manager.use.of(job) for manager in self.managers)

    def check_integrity(self) -> None:
        self._tree.check_integrity()
        for manager in self.managers:
            manager.check_integrity()
