"""Rotary embeddings whose angles follow the longest position of the whole batch, and so a row's neighbours."""

from __future__ import annotations

from typing import Any

from torch import nn

from engine.errors import ModelRefused


def check_rotations(model: nn.Module, max_model_len: int) -> None:
    """Raises ModelRefused where a step with a long sequence in it would turn the keys and queries of all others by
    other angles, and where one sequence would come to change its own half-way, with its earlier keys cached."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer_type, kind in kinds.items() if isinstance(kinds, dict) else [(None, kinds)]:
            first = _first_change(module, layer_type, kind)
            if first is not None and first < max_model_len:
                raise ModelRefused(
                    f"{type(module).__name__} ({kind}) turns all rows of a step by other angles as soon as one of them "
                    f"is longer than {first} tokens; it can be served with max_model_len {first} at most, and it is "
                    f"{max_model_len}"
                )


def _first_change(module: Any, layer_type: str | None, kind: object) -> int | None:
    """The longest sequence that still has the first angles; None if they never change."""
    if not isinstance(kind, str):
        return None
    if "dynamic" in kind:
        return int(module.original_max_seq_len)
    if kind == "longrope":
        parameters = module.config.rope_parameters
        parameters = parameters if layer_type is None else parameters[layer_type]
        return int(parameters["original_max_position_embeddings"])
    return None
