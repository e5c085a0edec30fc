"""What each row of a shard starts with and what it keeps for later rows. Pure: prompts go in, plans come out.

The prompts of a shard are the leaves of a prefix tree. Each node of it is reached first by one row, the earliest below
it; the first rows of the node's other branches start there. So every row but the earliest of all has one place where
it starts, and the row that computes this place first knows of it when it begins.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.request import Junction
from jobs.planner import Int64s, common_lengths

MOST_JUNCTIONS = 16
"""Of one row: a prompt that is followed by all its beginnings must not keep a state after each of its tokens."""


@dataclass(frozen=True, slots=True)
class RowPlan:
    """What the rows of one feed know of each other; the words are those of `Request`."""

    planned_tokens: int = 0
    junctions: tuple[Junction, ...] = ()


Users = dict[int, dict[int, list[int]]]
"""Row that announces -> length -> rows that start there. Rows are numbered in the order in which they run."""


@dataclass(slots=True)
class _Node:
    depth: int
    rows: list[int]  # the first row of each branch, and the rows that end here


def row_plans(
    values: npt.NDArray[np.integer], starts: Int64s, lengths: Int64s, most_junctions: int = MOST_JUNCTIONS
) -> list[RowPlan]:
    """The plan of each row, in the order in which they run; row i is values[starts[i] : starts[i] + lengths[i]].

    A row starts after what it has in common with any earlier row, but computes its last token itself. The earliest row
    with these tokens announces it. Where a row would announce too many junctions, those that save the least go, and
    their users start at the deepest one below. At each junction start exactly `num_users` rows, all of them later.
    """
    order, shared = _by_tokens(values, starts, lengths)
    users = _starting_places(order.tolist(), shared.tolist(), lengths.tolist())
    _drop_least(users, most_junctions)
    planned = [0] * len(lengths)
    junctions: list[tuple[Junction, ...]] = [()] * len(lengths)
    for first, places in users.items():
        junctions[first] = tuple(Junction(length, len(places[length])) for length in sorted(places))
        for length, rows in places.items():
            for row in rows:
                planned[row] = length
    return [RowPlan(*each) for each in zip(planned, junctions, strict=True)]


def _by_tokens(values: npt.NDArray[np.integer], starts: Int64s, lengths: Int64s) -> tuple[Int64s, Int64s]:
    """Rows sorted by their tokens, and how many leading tokens each of these has in common with the one before it.

    Rows that come sorted cost no copy of their tokens; others one, for the time of sorting.
    """
    order = np.arange(len(lengths))
    shared = _with_previous(values, starts, lengths, order)
    # Sorted: each row goes on where the one before it ends, or has the larger token where they differ.
    before, differ = order[:-1], np.flatnonzero(shared[1:] < lengths[:-1])
    at = shared[1:][differ]
    longer = lengths[1:][differ] > at
    larger = values[(starts[1:][differ] + at)[longer]] > values[(starts[before][differ] + at)[longer]]
    if longer.all() and larger.all():
        return order, shared
    # Big-endian bytes sort as the ids do.
    spans = zip(starts.tolist(), (starts + lengths).tolist(), strict=True)
    keys = [values[start:end].astype(">u4").tobytes() for start, end in spans]
    order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    return order, _with_previous(values, starts, lengths, order)


def _with_previous(values: npt.NDArray[np.integer], starts: Int64s, lengths: Int64s, order: Int64s) -> Int64s:
    starts, lengths = starts[order], lengths[order]
    shared = np.zeros(len(order), dtype=np.int64)
    shared[1:] = common_lengths(values, starts[1:], starts[:-1], np.minimum(lengths[1:], lengths[:-1]))
    return shared


def _starting_places(order: Sequence[int], shared: Sequence[int], lengths: Sequence[int]) -> Users:
    """Walk over the leaves from left to right; a node is left when a row shares less than its depth."""
    users: Users = {}
    path = [_Node(0, [])]
    rows: list[int] = []  # to be hung below the deepest node that is still open
    for row, depth in zip((*order, -1), (*shared, 0), strict=True):
        while path[-1].depth > depth:
            node = path.pop()
            node.rows += rows
            rows = _leave(node, max(path[-1].depth, depth), lengths, users)
        if path[-1].depth < depth:
            path.append(_Node(depth, []))
        path[-1].rows += rows
        rows = [row]
    return users


def _leave(node: _Node, parent_depth: int, lengths: Sequence[int], users: Users) -> list[int]:
    """Settle who starts at this node or on the edge to it; the rows that start further up or are the first here."""
    first = min(node.rows)
    left = [first]
    for row in node.rows:
        length = min(node.depth, lengths[row] - 1)
        if row == first:
            continue
        if length == parent_depth:  # it ends here, one token behind the parent
            left.append(row)
        else:
            users.setdefault(first, {}).setdefault(length, []).append(row)
    return left


def _drop_least(users: Users, most_junctions: int) -> None:
    """Leave at most so many junctions with each row.

    The latest row comes first: users that find nothing kept on its own part of the path start where it starts itself,
    at a junction of an earlier row.
    """
    start_of = {
        row: (length, rows) for places in users.values() for length, rows in places.items() for row in rows
    }  # the list itself: users that fall back are added to it
    for first in sorted(users, reverse=True):
        places = users[first]
        if len(places) <= most_junctions:
            continue
        start, lower = start_of.get(first, (0, []))
        lengths = sorted(places)
        kept = _worth_keeping(start, lengths, [len(places[length]) for length in lengths], most_junctions)
        for length in lengths:
            if length in kept:
                lower = places[length]
            else:
                lower += places.pop(length)


def _worth_keeping(start: int, lengths: Sequence[int], num_users: Sequence[int], most: int) -> set[int]:
    """The lengths that stay when that with the least saved tokens goes, again and again. A junction saves its users
    the tokens from the next lower one on; where it goes, they are users of that one."""
    at = [start, *lengths]
    count = [0, *num_users]
    below, above = list(range(-1, len(at) - 1)), [*range(1, len(at)), 0]

    def saved(index: int) -> int:
        return count[index] * (at[index] - at[below[index]])

    heap = [(saved(index), index) for index in range(1, len(at))]
    heapq.heapify(heap)
    alive = set(range(1, len(at)))
    while len(alive) > most:
        tokens, index = heapq.heappop(heap)
        if index not in alive or tokens != saved(index):
            continue  # what it saves has changed since; there is a later entry
        alive.remove(index)
        lower, upper = below[index], above[index]
        count[lower] += count[index]
        below[upper], above[lower] = lower, upper
        for changed in (lower, upper):
            if changed in alive:
                heapq.heappush(heap, (saved(changed), changed))
    return {at[index] for index in alive}
