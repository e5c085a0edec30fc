"""Where a prompt may be cut: then it runs in the same pieces whoever comes with it and whatever was cached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from engine.request import Junction


@dataclass(frozen=True, slots=True)
class Grid:
    """Multiples of `step`, counted from a sequence's start.

    |  cell  |  cell  |  cell  | rest |t|t|t|
    |             prompt              | generated, one by one

    A layer that scans a prompt gives other bits when it is cut elsewhere, or when several cells are one scan. With the
    step 1 a prompt may be cut anywhere.
    """

    step: int = 1

    def floor(self, length: int) -> int:
        return length - length % self.step

    def shareable(self, prompt_len: int) -> float:
        """How many tokens of a sequence have keys and values that depend on nothing but these tokens: its whole cells.
        The rest of its prompt would run as part of a longer scan in a longer prompt."""
        return inf if self.step == 1 else self.floor(prompt_len)

    def fit(self, start: int, length: int, prompt_len: int) -> int:
        """How many of the `length` tokens from `start` on may be one chunk; 0 if no cell fits."""
        end = start + length
        return length if end >= prompt_len else max(0, self.floor(end) - start)

    def cells(self, start: int, end: int, prompt_len: int) -> Iterator[tuple[int, int]]:
        """What is one scan, as (start, length), of the tokens `start .. end` of a sequence."""
        while start < end:
            stop = start + 1 if start >= prompt_len else min(self.floor(start) + self.step, prompt_len)
            assert stop <= end, f"tokens {start} to {end} end within a cell"
            yield start, stop - start
            start = stop

    def junctions(self, wanted: Sequence[Junction]) -> tuple[Junction, ...]:
        """Each moved down to the grid; those that come together are one, those that come to the start are none."""
        users: Counter[int] = Counter()
        for junction in wanted:
            users[self.floor(junction.length)] += junction.num_users
        return tuple(Junction(length, users[length]) for length in sorted(users) if length)


ANYWHERE = Grid()
