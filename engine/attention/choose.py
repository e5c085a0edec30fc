"""Which attention serves a model on this machine, and who draws its tokens."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from engine.attention.base import AttentionBackend
from engine.attention.compile import CannotCompile
from engine.attention.cpu import NativeAttention, unsupported
from engine.attention.draw import NativeDraw
from engine.attention.plain import PlainAttention
from engine.cache.groups import LayerGroup
from engine.config import EngineConfig
from engine.errors import ModelRefused

_log = logging.getLogger(__name__)


def choose_backend(
    groups: Sequence[LayerGroup],
    num_heads: int,
    dtype: torch.dtype,
    device: torch.device,
    config: EngineConfig,
) -> AttentionBackend:
    """The native kernel where it can serve every group, plain torch elsewhere. Both give the same, but for rounding.

    Raises ModelRefused in strict mode where it would be plain torch, whose sums depend on the batch.
    """
    problem = "it is switched off" if not config.native_attention else unsupported(groups, num_heads, dtype, device)
    if problem is None:
        try:
            return NativeAttention(config.shared_attention, config.strict)
        except CannotCompile as error:
            problem = str(error)
            if not config.strict:
                _log.warning("attention runs in plain torch, which is slower: %s", problem)
    if config.strict:
        raise ModelRefused(f"strict mode needs the C kernel for attention: {problem}")
    return PlainAttention(device)


def choose_draw(device: torch.device, config: EngineConfig) -> NativeDraw | None:
    """The C kernel on CPU, None where the sampler has to do with plain torch. Either gives a row the same bits in every
    batch, and the tokens of the other but for rounding."""
    if not config.native_sampling or device.type != "cpu":
        return None
    try:
        return NativeDraw()
    except CannotCompile as error:
        _log.warning("tokens are drawn in plain torch, which is slower: %s", error)
        return None
