"""Requests as a planned job hands them over, the kinds of models that run them, and what their prefix tree costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from engine.cache.groups import LayerGroup
from engine.request import Request
from jobs.junctions import RowPlan, row_plans
from tests.unit.engine.harness import FULL, HYBRID, LINEAR, STATES, group, request

Prompts = Sequence[Sequence[int]]

THREE_KINDS = (group(0, block_size=8), group(1, window=9, block_size=2), LayerGroup.of_states(2, (2, 3)))
TWO_FULL = (group(0, block_size=6), group(1), LayerGroup.of_states(2, (2,)))
LAYOUTS: dict[str, tuple[LayerGroup, ...]] = {
    "full": FULL,
    "sliding": (group(0, window=6),),
    "hybrid": HYBRID,
    "window of 1": (group(0), group(1, window=1)),
    "full and states": LINEAR,
    "states": (STATES,),
    "three kinds": THREE_KINDS,
    "two full": TWO_FULL,
}
WITH_STATES = {name: groups for name, groups in LAYOUTS.items() if not all(item.has_blocks for item in groups)}


def plans(prompts: Prompts) -> list[RowPlan]:
    lengths = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    values = np.array([*chain.from_iterable(prompts)], dtype=np.int32)
    return row_plans(values, np.cumsum(lengths) - lengths, lengths)


def planned(prompts: Prompts, max_tokens: int = 4, **options: Any) -> list[Request]:
    """One request per prompt, in this order, named by its number; each knows what the plan says of it."""
    return [
        replace(
            request(str(number), prompt, max_tokens, **options),
            junctions=plan.junctions,
            planned_tokens=plan.planned_tokens,
        )
        for number, (prompt, plan) in enumerate(zip(prompts, plans(prompts), strict=True))
    ]


def tree_bound(prompts: Prompts) -> int:
    """The tokens on the edges of the prefix tree, and the last one of each copy, which must run to give logits."""
    rows = [tuple(prompt) for prompt in prompts]
    edges = {prompt[:end] for prompt in rows for end in range(1, len(prompt) + 1)}
    return len(edges) + len(rows) - len(set(rows))
