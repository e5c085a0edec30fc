"""State layers (linear attention, state spaces, short convolutions): a sequence has one slot, whatever its length.

A slot is a plain integer that names one sequence's states in all state layers of the model. Slot 0 is NULL and is never
handed out. A slot's content starts from zero, and the chunk that starts a sequence is what makes it do so.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from engine.cache.base import GroupManager, GroupTable
from engine.cache.groups import LayerGroup
from engine.cache.prefix import PrefixNode
from engine.cache.usage import GroupUse
from engine.errors import ConfigError
from engine.step import NULL_BLOCK

_ANY_LENGTH = 1 << 62


class SlotPool:
    """Which slots are free. The lowest goes out first, so that the live ones lie close together in memory."""

    __slots__ = ("_free", "num_slots", "taken")

    def __init__(self, num_slots: int) -> None:
        if num_slots < 2:
            raise ConfigError(
                f"a pool of {num_slots} state slots has no usable one: slot 0 is reserved; use at least 2"
            )
        self.num_slots = num_slots  # slot 0 included
        self.taken = bytearray(num_slots)  # 1 while a sequence has the slot
        self._free = list(range(1, num_slots))  # a heap

    @property
    def capacity(self) -> int:
        """Slots that can hold something: all but NULL."""
        return self.num_slots - 1

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.capacity - self.num_free

    def take(self) -> int:
        assert self._free, "take() on an empty pool: the caller did not check num_free"
        slot = heapq.heappop(self._free)
        self.taken[slot] = 1
        return slot

    def give_back(self, slot: int) -> None:
        assert self.taken[slot], f"slot {slot} was given back twice"
        self.taken[slot] = 0
        heapq.heappush(self._free, slot)

    def check_integrity(self) -> None:
        assert not self.taken[NULL_BLOCK], "the NULL slot was used"
        assert len(set(self._free)) == len(self._free), "a slot is free twice"
        assert NULL_BLOCK not in self._free, "the NULL slot is free"
        assert not any(self.taken[slot] for slot in self._free), "a slot is free and taken"
        assert len(self._free) + sum(self.taken) == self.capacity, "a slot was lost or doubled"


class LinearManager(GroupManager):
    """One live slot per running sequence, one for each checkpoint; a table is that slot alone.

    A state cannot be cut back: what a slot holds is valid after exactly the tokens that ran. So a prefix can be resumed
    only from a copy that was kept at its very end: a checkpoint, which somebody has asked for.
    """

    pool: SlotPool
    needs_ancestors = False

    def __init__(self, group: LayerGroup, pool: SlotPool) -> None:
        self.group = group
        self.pool = pool
        self.use = GroupUse(pool.num_slots)

    def longest_valid(self, path: Sequence[PrefixNode], limit: int) -> int:
        return 0

    def hit_blocks(self, path: Sequence[PrefixNode], length: int) -> list[int]:
        return []

    def num_whole(self, length: int) -> int:
        return 0

    def own_at(self, length: int) -> int | None:
        return 0

    def needed_blocks(self, table: GroupTable, length: int) -> list[int]:
        return []

    def take_hit(self, table: GroupTable, blocks: list[int], job: str) -> None:
        assert not table.blocks, "a running sequence takes no new hits"
        assert not blocks, "a state cannot be shared"

    def num_waking(self, blocks: Sequence[int]) -> int:
        return 0

    def num_references(self, block: int) -> int:
        return self.pool.taken[block]

    def num_alone(self, blocks: Sequence[int]) -> int:
        return len(blocks)

    def peak_blocks(self, num_tokens: int, num_missing: int | None = None) -> int:
        return 1

    def num_missing(self, held: Sequence[int], end: int) -> int:
        return 0 if held else 1

    def room(self, table: GroupTable) -> int:
        return _ANY_LENGTH if table.blocks else 0

    def allocate(self, table: GroupTable, count: int, job: str) -> list[PrefixNode]:
        assert len(table.blocks) + count <= 1, "a sequence has one state slot"
        for _ in range(count):
            slot = self.pool.take()
            self.use.add(slot, job)
            table.blocks.append(slot)
        table.allocated += count
        return []

    def vacate(self, table: GroupTable, node: PrefixNode) -> None:
        """A state is cached by its checkpoint alone."""

    def pass_on(self, source: GroupTable, source_job: str, target: GroupTable, job: str) -> None:
        slot = source.blocks.pop()
        self.use.add(slot, job)
        self.use.remove(slot, source_job)
        target.blocks.append(slot)

    def drop_behind(self, table: GroupTable, computed: int, job: str) -> None:
        """The state is all that is left of every token."""

    def register(self, table: GroupTable, unit: int, node: PrefixNode, job: str) -> None:
        """The live slot goes on to change, so it is nobody else's."""

    def release(self, table: GroupTable, job: str) -> None:
        for slot in table.blocks:
            self.use.remove(slot, job)
            self.pool.give_back(slot)
        table.blocks.clear()

    def check_integrity(self) -> None:
        self.pool.check_integrity()
        self.use.check_integrity(list(self.pool.taken))
