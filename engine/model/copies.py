"""Copies that are made one after the other, as copies that are made at once. Pure, no tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from engine.step import NULL_BLOCK, BlockCopy


@dataclass(frozen=True, slots=True)
class CopyBatch:
    """Copies within one group that are made at once: every source is read before any target is written."""

    group: int
    sources: tuple[int, ...]
    targets: tuple[int, ...]  # no two are the same


def copy_batches(copies: Iterable[BlockCopy]) -> tuple[CopyBatch, ...]:
    """One batch for each group that `copies` change, with the same effect as making them in order.

    One is enough: whatever is copied on and on was, before the first copy, in some block, and is read there.
    """
    origins: dict[int, dict[int, int]] = {}  # per group and block: the block that held, before, what it holds after
    for copy in copies:
        assert NULL_BLOCK not in (copy.source, copy.target), f"group {copy.group}: a copy from or to block {NULL_BLOCK}"
        origin = origins.setdefault(copy.group, {})
        origin[copy.target] = origin.get(copy.source, copy.source)
    batches = []
    for group, origin in sorted(origins.items()):
        moved = [(source, target) for target, source in origin.items() if source != target]
        if moved:
            sources, targets = zip(*moved, strict=True)
            batches.append(CopyBatch(group, sources, targets))
    return tuple(batches)
