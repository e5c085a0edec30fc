"""Why a prompt found less in the cache than it might have: the layer kind or the rule, and how many tokens it cost."""

from __future__ import annotations

from engine.cache.kinds import Groups
from engine.cache.tables import Checkpoint, Hit, SequenceBlocks
from engine.request import Limits, add_limits

SWITCHED_OFF = "switched off"
OFF_GRID = "grid"  # strict mode starts at multiples only
NOT_MADE = "not made"  # whoever should have computed it was refused or cancelled


def explain(groups: Groups, hit: Hit, seq: SequenceBlocks, planned: Checkpoint | None, is_on: bool) -> Limits:
    """`planned` stands where the plan lets this prompt start, if anything does."""
    missed = seq.planned - hit.length
    if not is_on:
        missed += seq.off_grid
        return ((SWITCHED_OFF, missed),) if missed > 0 else ()
    if missed > 0:
        name = (planned.lost if planned is not None else "") or NOT_MADE
        return add_limits(((name, missed),), ((OFF_GRID, seq.off_grid),) if seq.off_grid else ())
    if seq.off_grid + missed > 0:
        return ((OFF_GRID, seq.off_grid + missed),)
    return () if seq.planned else _limit_of_groups(groups, hit)  # a plan that came true was limited by nothing


def _limit_of_groups(groups: Groups, hit: Hit) -> Limits:
    """Without a plan: the group that could resume least far, if another could from beyond the hit."""
    end = len(hit.path) * groups.tree.unit
    if end <= hit.length:
        return ()
    alone = [(manager.longest_valid(hit.path, end), manager.group.kind) for manager in groups.with_blocks]
    best, _ = max(alone, default=(0, ""))
    if best <= hit.length:
        return ()
    _, least = min(alone)
    return (("linear" if groups.has_states else least, best - hit.length),)
