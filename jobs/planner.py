"""Cut the rows of a job into shards. Pure: rows in plan order go in as numbers, shards come out as they are settled.

Rows sorted by their token ids are the leaves of a prefix tree from left to right. The tokens that a row shares with
the row before it are the path to their fork; a small number means that a subtree ends there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

# A cut may come this much before or after the budget if a subtree ends there.
SLACK = 0.25

COMPARED_TOKENS = 65_536  # at a time: comparing takes some 60 bytes for each


class RowCost(NamedTuple):
    """One row as the planner sees it, in tokens."""

    computed: int  # prompt tokens that no earlier row has, and the tokens it may generate
    shared: int  # leading tokens that it has in common with the row before it


class Cut(NamedTuple):
    """A shard: the next `num_rows` rows."""

    num_rows: int
    cost_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CutLimits:
    """`min_rows` keeps a batch filled: no shard is smaller, unless the job is. It wins over budget and `max_rows`."""

    budget_tokens: int
    min_rows: int
    max_rows: int

    def widened(self, num_rows: int, num_tokens: int, most_shards: int) -> CutLimits:
        """These limits, or wider ones where a job of this size would get more shards than that."""
        return replace(
            self,
            budget_tokens=max(self.budget_tokens, -(-num_tokens // most_shards)),
            max_rows=max(self.max_rows, -(-num_rows // most_shards)),
        )


def cut_shards(rows: Iterable[RowCost], limits: CutLimits) -> Iterator[Cut]:
    """Shards in order; they partition the rows.

    A shard costs at most (1 + SLACK) budgets and the row that crosses this line, except where min_rows asks for more
    or a rest below min_rows joins the last shard.
    """
    held: Cut | None = None  # the last settled shard waits, in case that the rest is too small to stand alone
    open_rows: list[RowCost] = []
    open_cost = 0
    for row in rows:
        open_rows.append(row)
        open_cost += row.computed
        while _is_full(len(open_rows), open_cost, limits):
            size = _best_size(open_rows, limits)
            if held is not None:
                yield held
            held = Cut(size, sum(each.computed for each in open_rows[:size]))
            open_rows, open_cost = open_rows[size:], open_cost - held.cost_tokens
    rest = Cut(len(open_rows), open_cost)
    if held is not None and rest.num_rows < limits.min_rows:
        held, rest = Cut(held.num_rows + rest.num_rows, held.cost_tokens + rest.cost_tokens), Cut(0, 0)
    yield from (cut for cut in (held, rest) if cut is not None and cut.num_rows)


def _is_full(num_rows: int, cost: int, limits: CutLimits) -> bool:
    """True when nothing to come could make a better cut than those in sight."""
    if num_rows <= limits.min_rows:
        return False
    return cost > limits.budget_tokens * (1 + SLACK) or num_rows > limits.max_rows


def _best_size(rows: list[RowCost], limits: CutLimits) -> int:
    """How many of these rows become the shard: up to a row that shares little with the one before it, close to the
    budget. At least one row stays behind."""
    low, high = limits.budget_tokens * (1 - SLACK), limits.budget_tokens * (1 + SLACK)
    best, best_rank = 0, (0.0, 0.0)
    cost = 0
    for size, row in enumerate(rows):
        if size >= limits.min_rows and low <= cost <= high and size <= limits.max_rows:
            rank = (row.shared, abs(cost - limits.budget_tokens))
            if not best or rank < best_rank:
                best, best_rank = size, rank
        cost += row.computed
    # No cut near the budget: everything but the row that crossed the line.
    return best or max(limits.min_rows, min(len(rows) - 1, limits.max_rows))


def shared_lengths(values: npt.NDArray[np.integer], offsets: Int64s) -> Int64s:
    """For each row of token ids (row i is values[offsets[i]:offsets[i+1]]) the number of leading ids that it shares
    with the row before it; 0 for the first."""
    lengths = np.diff(offsets)
    shared = np.zeros(len(lengths), dtype=np.int64)
    shared[1:] = common_lengths(values, offsets[1:-1], offsets[:-2], np.minimum(lengths[1:], lengths[:-1]))
    return shared


def common_lengths(values: npt.NDArray[np.integer], ones: Int64s, others: Int64s, limits: Int64s) -> Int64s:
    """For each i the number of leading ids, `limits[i]` at most, in which what starts at values[ones[i]] and what
    starts at values[others[i]] agree. Takes the memory of COMPARED_TOKENS or of one row."""
    common = np.zeros(len(limits), dtype=np.int64)
    some = np.flatnonzero(limits > 0)
    ends = np.cumsum(limits[some])
    first, done = 0, 0
    while first < len(some):
        last = max(first + 1, int(np.searchsorted(ends, done + COMPARED_TOKENS, side="right")))
        part = some[first:last]
        common[part] = _agreeing(values, ones[part], others[part], limits[part])
        first, done = last, int(ends[last - 1])
    return common


def _agreeing(values: npt.NDArray[np.integer], ones: Int64s, others: Int64s, counts: Int64s) -> Int64s:
    """The same for counts above 0, all at once."""
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
    within = np.arange(int(counts.sum()), dtype=np.int64) - np.repeat(starts, counts)
    equal = values[np.repeat(ones, counts) + within] == values[np.repeat(others, counts) + within]
    # The first difference in each pair; where there is none, its length.
    first_difference = np.where(equal, np.repeat(counts, counts), within)
    return np.minimum.reduceat(first_difference, starts)


def cached_lengths(lengths: Int64s, shared: Int64s) -> Int64s:
    """Tokens of each row that a cache can serve which resumes at any token; the last of a prompt is always computed."""
    return np.minimum(shared, np.maximum(lengths - 1, 0))
