"""What the cache asks of every kind of layer group: blocks.py for those with blocks, linear.py for state slots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Protocol

from engine.cache.groups import LayerGroup
from engine.cache.prefix import PrefixNode
from engine.cache.usage import GroupUse
from engine.request import GroupCounters


class GroupTable:
    """One sequence's blocks in one group, by absolute block position, and what it took to get them.

    |  0 .. first  |  first .. len(blocks)  |
    |     NULL     |          held          |

    In a linear group, the sequence's one state slot.
    """

    __slots__ = ("allocated", "blocks", "copied", "evicted", "evicted_unused", "first", "shared")

    def __init__(self) -> None:
        self.blocks: list[int] = []  # the runner keeps a reference: changed in place, never replaced
        self.first = 0
        self.allocated = 0
        self.shared = 0
        self.copied = 0
        self.evicted = 0
        self.evicted_unused = 0

    @property
    def num_held(self) -> int:
        return len(self.blocks) - self.first

    def absorb(self, other: GroupTable, copied: int) -> None:
        """Charge this sequence with what it took to fill a checkpoint's table."""
        self.allocated += other.allocated
        self.copied += copied
        self.evicted += other.evicted
        self.evicted_unused += other.evicted_unused

    def counters(self) -> GroupCounters:
        return GroupCounters(
            allocated=self.allocated,
            shared=self.shared,
            copied=self.copied,
            evicted=self.evicted,
            evicted_unused=self.evicted_unused,
        )


class Pool(Protocol):
    """What admission must know of a pool: of blocks, or of state slots."""

    @property
    def num_free(self) -> int: ...

    @property
    def capacity(self) -> int:
        """What the pool can give out in all: everything but id 0."""
        ...


class GroupManager(ABC):
    """The owner of one group's pool, and its rules. "Block" stands for a state slot in a linear group."""

    group: LayerGroup
    pool: Pool
    use: GroupUse

    needs_ancestors: ClassVar[bool]
    """Whether a cached block is worthless once a block before it is gone."""

    @abstractmethod
    def longest_valid(self, path: Sequence[PrefixNode], limit: int) -> int:
        """The longest prefix of at most `limit` tokens from which this group's blocks let it go on; 0 if none."""

    @abstractmethod
    def num_whole(self, length: int) -> int:
        """Whole blocks before position `length`: what can be shared."""

    @abstractmethod
    def own_at(self, length: int) -> int | None:
        """Where in a table that ends at `length` the block stands that cannot be shared; None if there is none."""

    @abstractmethod
    def needed_blocks(self, table: GroupTable, length: int) -> list[int]:
        """The whole blocks of a running sequence that one which starts at `length` needs; NULL for the others."""

    @abstractmethod
    def hit_blocks(self, path: Sequence[PrefixNode], length: int) -> list[int]:
        """The table after a hit of `length` tokens: NULL where no later token can see."""

    @abstractmethod
    def take_hit(self, table: GroupTable, blocks: list[int], job: str) -> None:
        """Hold the blocks of a hit: nothing that is allocated later can evict them."""

    @abstractmethod
    def num_waking(self, blocks: Sequence[int]) -> int:
        """How many blocks of a hit are free now, and would not be once it is taken."""

    @abstractmethod
    def num_references(self, block: int) -> int: ...

    @abstractmethod
    def num_alone(self, blocks: Sequence[int]) -> int:
        """How many of these blocks would be free if one reference to each were dropped."""

    @abstractmethod
    def peak_blocks(self, num_tokens: int, num_missing: int | None = None) -> int:
        """The most blocks that a sequence of `num_tokens` ever holds: used for sizing and for admission alike.

        With `num_missing`, the tokens that are there but have not run, from now on: a sequence that only decodes any
        more needs less room for its chunks.
        """

    @abstractmethod
    def num_missing(self, held: Sequence[int], end: int) -> int:
        """Blocks still to be allocated beside those held, before positions below `end` can be written."""

    @abstractmethod
    def room(self, table: GroupTable) -> int:
        """Positions below this one can be written."""

    @abstractmethod
    def allocate(self, table: GroupTable, count: int, job: str) -> list[PrefixNode]:
        """Append fresh blocks; return the prefixes that were evicted for them. The caller has checked the room."""

    @abstractmethod
    def vacate(self, table: GroupTable, node: PrefixNode) -> None:
        """Forget what is cached for this prefix, if nobody uses it. It counts as evicted for `table`."""

    @abstractmethod
    def pass_on(self, source: GroupTable, source_job: str, target: GroupTable, job: str) -> None:
        """Move the last block of one table to the end of the other."""

    @abstractmethod
    def drop_behind(self, table: GroupTable, computed: int, job: str) -> None:
        """Give back what no token from position `computed` on can see."""

    @abstractmethod
    def register(self, table: GroupTable, unit: int, node: PrefixNode, job: str) -> None:
        """Enter what ends with unit `unit` of the sequence, which has just been computed, as the content of `node`."""

    @abstractmethod
    def release(self, table: GroupTable, job: str) -> None:
        """Give everything back."""

    @abstractmethod
    def check_integrity(self) -> None: ...
