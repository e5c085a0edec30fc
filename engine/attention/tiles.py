"""How the C kernel walks through one step: tiles of queries, each over one stretch of keys. Pure numpy.

a chunk of a prompt     its queries, `height` at a time, over all that they see
a decode                its query alone, over all that it sees
decodes that share      one tile of their queries over the blocks that they share, and so on down the tree of their
                        tables; then each alone, from where it parts from the others, with what is summed up so far
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engine.attention.base import GroupSpans, Int32Array, Int64Array

PASS = 64  # as in kernel/2_attend.c: stretches begin at its multiples, so that they change no bit


@dataclass(frozen=True, slots=True)
class Stretch:
    """Keys [from, to) that all queries of `members` see, or no longer see. `chunk` is one of them; its table has all of
    the blocks. Stretches of one stage have no query in common."""

    stage: int
    members: Int64Array  # chunks
    chunk: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Tiles as the kernel reads them (`Tile` there), stage by stage. Members name queries: column and position."""

    columns: Int32Array
    positions: Int32Array
    tiles: Int32Array  # [tiles, 7]
    stages: Int64Array  # [num_stages + 1]: the first tile of each

    @property
    def hands_on(self) -> bool:
        return len(self.stages) > 2


def plan_walk(spans: GroupSpans, height: int, share: bool) -> Walk:
    """At most `height` queries to a tile. `share`: decodes come to the blocks that they share together."""
    stretches = list(shared_stretches(spans)) if share else []
    reached = spans.starts * 0  # of each decode, where the stretches end
    depth = reached.copy()
    for stretch in stretches:
        reached[stretch.members] = stretch.end
        depth[stretch.members] = stretch.stage + 1
    own, own_stage = _own_tiles(spans, height, reached), depth
    tiles, stages = [own], [own_stage[own[:, 2]]]
    extra: list[Int64Array] = []
    first_extra = spans.num_tokens
    for stretch in stretches:
        tiles.append(_shared_tiles(stretch, height, first_extra))
        stages.append(np.full(len(tiles[-1]), stretch.stage))
        extra.append(stretch.members)
        first_extra += len(stretch.members)
    tile, stage = np.concatenate(tiles), np.concatenate(stages)
    # The largest first, to end together.
    order = np.lexsort((-(tile[:, 4] - tile[:, 3]) * tile[:, 1], stage))
    chunk = np.repeat(np.arange(len(spans.lengths)), spans.lengths)
    columns = np.arange(spans.num_tokens)
    positions = columns - spans.offsets[chunk] + spans.starts[chunk]
    again = np.concatenate([*extra, np.zeros(0, dtype=np.int64)])
    return Walk(
        columns=np.concatenate([columns, spans.offsets[again]]).astype(np.int32),
        positions=np.concatenate([positions, spans.starts[again]]).astype(np.int32),
        tiles=np.ascontiguousarray(tile[order].astype(np.int32)),
        stages=np.searchsorted(stage[order], np.arange(int(stage.max()) + 2)).astype(np.int64),
    )


def _own_tiles(spans: GroupSpans, height: int, reached: Int64Array) -> Int64Array:
    """[tiles, 7]: every chunk from where its shared stretches end."""
    counts = -(-spans.lengths // height)
    chunk = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(chunk)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = number * height
    count = np.minimum(height, spans.lengths[chunk] - begin)
    first = spans.starts[chunk] + begin
    seen = np.zeros_like(first) if spans.window is None else np.maximum(first - spans.window + 1, 0)
    resumes = (reached[chunk] > 0).astype(np.int64)
    fields = (spans.offsets[chunk] + begin, count, chunk, np.maximum(seen, reached[chunk]), first + count, resumes)
    return np.stack([*fields, np.zeros_like(first)], axis=1)


def _shared_tiles(stretch: Stretch, height: int, first_member: int) -> Int64Array:
    begin = np.arange(0, len(stretch.members), height)
    tile = np.empty((len(begin), 7), dtype=np.int64)
    tile[:, 0] = first_member + begin
    tile[:, 1] = np.minimum(height, len(stretch.members) - begin)
    tile[:, 2:] = (stretch.chunk, stretch.begin, stretch.end, stretch.stage > 0, True)
    return tile


def shared_stretches(spans: GroupSpans) -> Iterator[Stretch]:
    """The stretches of keys that two or more decodes have in the same blocks, from the root of their tree down."""
    decodes = np.flatnonzero(spans.lengths == 1)
    if len(decodes) < 2:
        return
    left = int(spans.first_blocks[decodes].min())
    tables = _from_the_same_block(spans, decodes, left)
    order = np.lexsort(tables.T[::-1])
    decodes, tables = decodes[order], tables[order]
    unlike = tables[1:] != tables[:-1]
    alike = np.where(unlike.any(axis=1), unlike.argmax(axis=1), tables.shape[1]) + left
    # Whole passes, and never the block that is being written to.
    whole = spans.starts[decodes] // PASS * PASS
    unit = math.lcm(PASS, spans.block_size)
    common = np.minimum(alike * spans.block_size, np.minimum(whole[1:], whole[:-1])) // unit * unit
    todo = [(0, len(decodes), left * spans.block_size // unit * unit, 0)]
    while todo:
        first, last, begin, stage = todo.pop()
        end = int(common[first : last - 1].min())
        members = decodes[first:last]
        seen = 0 if spans.window is None else max(0, int(spans.starts[members].min()) - spans.window + 1)
        if end > max(begin, seen):
            chunk = int(members[spans.first_blocks[members].argmin()])
            yield Stretch(stage, members, chunk, max(begin, seen), end)
            begin, stage = end, stage + 1
        cuts = [first, *(first + 1 + np.flatnonzero(common[first : last - 1] == end)), last]
        todo += [(a, b, begin, stage) for a, b in pairwise(cuts) if b - a > 1]


def _from_the_same_block(spans: GroupSpans, decodes: Int64Array, left: int) -> Int32Array:
    """The decodes' tables side by side, [decodes, blocks], each from block `left` of its sequence on.

    What has left a window is filled in from another table with the same blocks, as the two were alike there as well.
    Elsewhere numbers stand that equal no block and no other.
    """
    shift = spans.first_blocks[decodes] - left
    width = int((shift + (spans.starts[decodes] // spans.block_size - spans.first_blocks[decodes])).max()) + 1
    tables = -1 - np.arange(len(decodes) * width, dtype=np.int32).reshape(-1, width)
    own = spans.starts[decodes] // spans.block_size - spans.first_blocks[decodes] + 1
    for row in np.argsort(shift, kind="stable"):
        begin, count = int(shift[row]), int(own[row])
        tables[row, begin : begin + count] = spans.tables[decodes[row], :count]
        if begin:
            same = np.flatnonzero(tables[:, begin] == tables[row, begin])
            longer = same[shift[same] < begin]
            if len(longer):
                donor = longer[shift[longer].argmin()]
                tables[row, :begin] = tables[donor, :begin]
    return tables
