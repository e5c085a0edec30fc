"""Which checkpoint is given up next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from engine.cache.base import GroupTable
from engine.cache.kinds import Groups
from engine.cache.tables import Checkpoint, Rank


class Order:
    """The checkpoints that hold something; of each rank, the one that was used least recently is first."""

    def __init__(self, groups: Groups) -> None:
        self._managers = groups.managers
        self._of_rank: dict[Rank, dict[Checkpoint, None]] = {rank: {} for rank in Rank}

    def add(self, checkpoint: Checkpoint) -> None:
        self._of_rank[checkpoint.rank][checkpoint] = None

    def remove(self, checkpoint: Checkpoint) -> None:
        del self._of_rank[checkpoint.rank][checkpoint]

    def touch(self, checkpoint: Checkpoint) -> None:
        """It is the last of its rank now."""
        self.remove(checkpoint)
        self.add(checkpoint)

    def move(self, checkpoint: Checkpoint, rank: Rank) -> None:
        """Give it this rank, also if it holds nothing."""
        if checkpoint.is_ready:
            self.remove(checkpoint)
        checkpoint.rank = rank
        if checkpoint.is_ready:
            self.add(checkpoint)

    def lowest(self, highest: Rank) -> Checkpoint | None:
        """The first up to this rank that holds what nobody else does.

        If all may go, several may have to: those of equal prompts hold the same blocks, and none of them frees any.
        """
        found = next((each for each in self._up_to(highest) if self._frees_something(each)), None)
        if found is None and highest is max(Rank):
            return self._lowest_of_equals()
        return found

    def _frees_something(self, checkpoint: Checkpoint) -> bool:
        return any(
            manager.num_alone(table.blocks) for manager, table in zip(self._managers, checkpoint.tables, strict=True)
        )

    def _lowest_of_equals(self) -> Checkpoint | None:
        """The first that holds what no sequence does."""
        for index, manager in enumerate(self._managers):
            named = Counter(block for tables in self.tables() for block in tables[index].blocks[tables[index].first :])
            unused = {block for block, count in named.items() if manager.num_references(block) == count}
            for checkpoint in self:
                if not unused.isdisjoint(checkpoint.tables[index].blocks):
                    return checkpoint
        return None

    def tables(self) -> list[tuple[GroupTable, ...]]:
        return [checkpoint.tables for checkpoint in self]

    def __iter__(self) -> Iterator[Checkpoint]:
        return self._up_to(max(Rank))

    def _up_to(self, highest: Rank) -> Iterator[Checkpoint]:
        return (each for rank in Rank if rank <= highest for each in self._of_rank[rank])

    def check_integrity(self) -> None:
        for rank, checkpoints in self._of_rank.items():
            for checkpoint in checkpoints:
                assert checkpoint.rank is rank, "a checkpoint stands in the wrong order"
                assert checkpoint.is_ready, "an empty checkpoint counts as ready"
