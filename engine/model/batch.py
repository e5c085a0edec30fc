"""One step as arrays: the packed row, and each layer group's view of it. Pure numpy, no tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.attention.base import GroupSpans, Int32Array, Int64Array
from engine.cache.groups import LayerGroup
from engine.grid import Grid
from engine.step import NULL_BLOCK, Chunk


@dataclass(frozen=True, slots=True)
class PackedStep:
    """All tokens of a step in one row."""

    token_ids: Int64Array  # [T]
    positions: Int64Array  # [T], absolute
    sampling_columns: Int64Array  # the last column of each chunk that samples, in chunk order
    spans: tuple[GroupSpans, ...]  # per group


@dataclass(frozen=True, slots=True)
class SlotBatch:
    """Chunks of one length, all of which start their sequences, or none."""

    length: int  # tokens of each
    fresh: bool
    slots: Int64Array  # [S]
    columns: Int64Array  # [S * length] of the packed row


def slot_cells(chunks: Sequence[Chunk], group: LayerGroup, grid: Grid) -> tuple[SlotBatch, ...]:
    """One step as the linear group sees it in strict mode: each cell of the grid alone, in order."""
    cells: list[SlotBatch] = []
    offset = 0
    for chunk in chunks:
        slots = np.array([_slot(chunk, group)], dtype=np.int64)
        for start, length in grid.cells(chunk.start, chunk.start + chunk.length, chunk.prompt_len):
            cells.append(SlotBatch(length, start == 0, slots, np.arange(offset, offset + length)))
            offset += length
    return tuple(cells)


def _slot(chunk: Chunk, group: LayerGroup) -> int:
    (slot,) = chunk.tables[group.index]
    assert slot != NULL_BLOCK, f"sequence {chunk.sequence_id} has no state slot"
    return slot


def slot_batches(chunks: Sequence[Chunk], group: LayerGroup) -> tuple[SlotBatch, ...]:
    """One step as the linear group sees it. All decodes are one batch."""
    members: dict[tuple[int, bool], list[tuple[int, Int64Array]]] = {}
    offset = 0
    for chunk in chunks:
        columns = np.arange(offset, offset + chunk.length)
        members.setdefault((chunk.length, chunk.start == 0), []).append((_slot(chunk, group), columns))
        offset += chunk.length
    return tuple(
        SlotBatch(
            length,
            fresh,
            np.array([slot for slot, _ in batch], dtype=np.int64),
            np.concatenate([columns for _, columns in batch]),
        )
        for (length, fresh), batch in members.items()
    )


def pack(chunks: Sequence[Chunk], groups: Sequence[LayerGroup]) -> PackedStep:
    """Lay the chunks side by side in their order. `groups` are those with blocks."""
    starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
    lengths = np.array([chunk.length for chunk in chunks], dtype=np.int64)
    assert (lengths > 0).all(), "a chunk without tokens was scheduled"
    ends = np.cumsum(lengths)
    offsets = ends - lengths
    owners = np.repeat(np.arange(len(chunks)), lengths)
    positions = np.arange(int(ends[-1])) - offsets[owners] + starts[owners]

    token_ids = np.empty(int(ends[-1]), dtype=np.int64)
    for chunk, offset in zip(chunks, offsets, strict=True):
        token_ids[offset : offset + chunk.length] = chunk.token_ids[chunk.start : chunk.start + chunk.length]

    samples = np.array([bool(chunk.sample_indices) for chunk in chunks], dtype=bool)
    spans = tuple(_spans(chunks, group, starts, lengths, offsets, owners, positions) for group in groups)
    return PackedStep(token_ids, positions, (ends - 1)[samples], spans)


def _spans(
    chunks: Sequence[Chunk],
    group: LayerGroup,
    starts: Int64Array,
    lengths: Int64Array,
    offsets: Int64Array,
    owners: Int64Array,
    positions: Int64Array,
) -> GroupSpans:
    size = group.block_size
    first_visible = np.zeros_like(starts) if group.window is None else np.maximum(starts - group.window + 1, 0)
    first_blocks = first_visible // size
    last_blocks = (starts + lengths - 1) // size
    tables = _tables(chunks, group, first_blocks, last_blocks)
    blocks = tables[owners, positions // size - first_blocks[owners]].astype(np.int64)
    return GroupSpans(
        block_size=size,
        window=group.window,
        starts=starts,
        lengths=lengths,
        offsets=offsets,
        first_blocks=first_blocks,
        tables=tables,
        write_slots=blocks * size + positions % size,
    )


def _tables(
    chunks: Sequence[Chunk], group: LayerGroup, first_blocks: Int64Array, last_blocks: Int64Array
) -> Int32Array:
    """The visible part of each block table, left-aligned, NULL_BLOCK on the right."""
    widths = last_blocks - first_blocks + 1
    tables = np.full((len(chunks), int(widths.max())), NULL_BLOCK, dtype=np.int32)
    for row, chunk in enumerate(chunks):
        visible = chunk.tables[group.index][first_blocks[row] : last_blocks[row] + 1]
        tables[row, : widths[row]] = visible
        assert len(visible) == widths[row], f"sequence {chunk.sequence_id}: block table of group {group.index} is short"
    needed = np.arange(tables.shape[1]) < widths[:, None]
    assert (tables[needed] != NULL_BLOCK).all(), f"group {group.index}: a visible block is missing from its table"
    return tables
