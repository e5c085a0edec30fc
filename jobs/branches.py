"""Longest rows first, without taking rows apart that share a prefix. Pure: numbers go in, places come out.

Rows by their token ids are the leaves of a prefix tree from left to right. Any walk that finishes a branch before it
begins the next one computes every shared prefix once; this one begins with the branch that has the longest row:

    by tokens       [a b] 8   [a c] 64   [d] 16   [e] 128
    this order      [e] 128   [a c] 64   [a b] 8   [d] 16
"""

from __future__ import annotations

from typing import cast

import numpy as np

from jobs.planner import Int64s

# Rows are a branch if they share this many tokens more than the branches around them: a block of the cache. Nearly all
# prompts have some first words in common with others, and these would else decide when a row starts.
BRANCH_TOKENS = 16


def branch_places(shared: Int64s, expected: Int64s, branch_tokens: int = BRANCH_TOKENS) -> Int64s:
    """The place of each row, for rows by their tokens. `shared`: tokens in common with the row before, 0 for the first;
    `expected`: tokens that the row may generate. Equal branches stay in order.

    Goes down the tree level by level, over the rows that are still in a branch with others.
    """
    places = np.zeros(len(shared), dtype=np.int64)
    rows = np.arange(len(shared), dtype=np.int64)  # branch after branch
    begins = np.zeros(min(1, len(rows)), dtype=np.int64)  # of each branch, in `rows`
    first_places, depths = np.zeros_like(begins), np.zeros_like(begins)
    while len(rows):
        branch = np.repeat(np.arange(len(begins)), _sizes(begins, len(rows)))
        is_first = shared[rows] < depths[branch] + branch_tokens
        is_first[begins] = True
        inner = np.flatnonzero(is_first)
        sizes = _sizes(inner, len(rows))
        outer = branch[inner]
        order = np.lexsort((-np.maximum.reduceat(expected[rows], inner), outer))
        inner_places = np.empty_like(inner)
        inner_places[order] = np.cumsum(sizes[order]) - sizes[order]
        inner_places += first_places[outer] - begins[outer]
        is_row = sizes == 1
        places[rows[inner[is_row]]] = inner_places[is_row]
        depths = _depths(shared[rows], inner)[~is_row]
        rows = rows[np.repeat(~is_row, sizes)]
        sizes = sizes[~is_row]
        begins, first_places = np.cumsum(sizes) - sizes, inner_places[~is_row]
    return places


def _sizes(begins: Int64s, end: int) -> Int64s:
    return cast(Int64s, np.diff(begins, append=end))


def _depths(shared: Int64s, begins: Int64s) -> Int64s:
    """What all rows of each branch have in common: the least that one shares with the row before it in the branch."""
    within = shared.copy()
    within[begins] = np.iinfo(np.int64).max
    return cast(Int64s, np.minimum.reduceat(within, begins))
