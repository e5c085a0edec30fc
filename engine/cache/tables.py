"""What one sequence has of the cache, what it could take from it, and what is kept for others to start from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import inf

from engine.cache.base import GroupTable
from engine.cache.prefix import PrefixNode
from engine.grid import Grid
from engine.request import GroupCounters, Junction, Limits


class Rank(IntEnum):
    """How dearly a checkpoint is given up."""

    LOOSE = 0  # kept on suspicion, without users that are known
    PLANNED = 1  # later requests of a plan will start here
    OWN = 2  # sequences in the queue will: siblings of a fork, or one that was preempted


class Checkpoint:
    """Where sequences can start after exactly `length` tokens, or will be able to.

    |  whole blocks, held  |  the partial block: a copy of its own  |     and a state slot of its own, in a linear group
    |                      `length` tokens                          |

    Nobody writes into it: who starts here shares the whole blocks and copies the rest, or takes it over if nobody else
    will start here. It may be empty: to be made by the next sequence that passes (`owner`, once that runs), or lost.
    """

    __slots__ = ("is_whole", "job", "length", "lost", "node", "owner", "rank", "tables", "tail", "users")

    def __init__(self, length: int, job: str, rank: Rank, num_users: int = 0) -> None:
        self.length = length
        self.job = job  # that the blocks are charged to
        self.rank = rank
        # How many are still to start here, per plan; below 0 where some who never will were not expected yet.
        self.users: Counter[Hashable] = Counter()
        if num_users:
            self.users[None] = num_users
        self.node: PrefixNode | None = None  # where it stands in the tree; None for what one sequence or fork keeps
        self.tail: tuple[int, ...] = ()  # the tokens beyond the node
        self.owner: SequenceBlocks | None = None  # the sequence that is computing it now
        self.is_whole = True  # with the whole blocks; what a preemption leaves relies on those that are cached
        self.tables: tuple[GroupTable, ...] = ()  # per group; empty tuple: nothing is kept
        self.lost = ""  # why there is nothing, in a word for the statistics

    @property
    def is_ready(self) -> bool:
        return bool(self.tables)

    @property
    def num_users(self) -> int:
        return (+self.users).total()


class SequenceBlocks:
    """One sequence's tables in all groups. Empty while the sequence waits; the counters outlive a preemption."""

    __slots__ = (
        "has_started",
        "job",
        "junctions",
        "kept",
        "limits",
        "num_registered",
        "off_grid",
        "path",
        "plan",
        "planned",
        "room",
        "shareable",
        "stops",
        "tables",
        "views",
    )

    def __init__(self, job: str, num_groups: int, shareable: float = inf) -> None:
        self.job = job
        self.shareable = shareable  # its first tokens, whose blocks may serve others
        self.tables = tuple(GroupTable() for _ in range(num_groups))
        self.views = tuple(table.blocks for table in self.tables)  # what the runner reads
        self.room = 0  # tokens that the tables can hold in every group
        self.path: list[PrefixNode] = []  # one node per unit; the last one is pinned
        self.num_registered = 0  # units whose blocks are registered
        self.stops: list[Checkpoint] = []  # that it will make, the next one last
        self.kept: Checkpoint | None = None  # a fork's start, or where a preemption has stopped it
        self.has_started = False
        self.plan: Hashable = None  # whose users this sequence counts among until it has started
        self.planned = 0
        self.off_grid = 0  # tokens by which the plan goes beyond it
        self.junctions: tuple[Junction, ...] = ()
        self.limits: Limits = ()

    def follow(self, plan: Hashable, planned: int, junctions: Sequence[Junction], grid: Grid) -> None:
        """What is planned off the grid takes place before it."""
        self.plan, self.planned, self.junctions = plan, grid.floor(planned), grid.junctions(junctions)
        self.off_grid = planned - self.planned

    def uses(self, checkpoint: Checkpoint) -> bool:
        """Whether this sequence is one of the checkpoint's users."""
        if checkpoint is self.kept:
            return True
        return not self.has_started and self.planned == checkpoint.length and checkpoint.users[self.plan] > 0

    def is_last_at(self, checkpoint: Checkpoint) -> bool:
        """Whether nobody else will start there, so that this sequence may take it over."""
        if checkpoint.rank is Rank.LOOSE or checkpoint.num_users != 1 or not self.uses(checkpoint):
            return False
        return self.has_started or all(junction.length != checkpoint.length for junction in self.junctions)

    def counters(self) -> tuple[GroupCounters, ...]:
        return tuple(table.counters() for table in self.tables)


@dataclass(frozen=True, slots=True)
class Hit:
    """The longest prefix that every group can resume from, and what each would take for it."""

    length: int  # tokens
    path: list[PrefixNode]  # every known node, also beyond `length`
    blocks: tuple[list[int], ...]  # whole blocks per group
    checkpoint: Checkpoint | None  # that has the rest, unless the whole blocks are all
    takes_over: bool  # nobody else will start there
    computing: Checkpoint | PrefixNode | None  # the longest prefix beyond `length` that a running sequence computes
    shared: int  # tokens from which all groups with blocks could go on; more than `length` if a state is missing
