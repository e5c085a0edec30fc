"""Weights of 8 bits: whole numbers from -127 to 127, and a scale for each output of a linear layer.

Activations, sums, keys and values stay float32. A model is rounded once, when it is read; from then on its weights are
whole numbers times scales, whoever computes with them, so that all that is tried out at load holds as it does for a
model as it was saved.
"""

from __future__ import annotations

import torch
from torch import nn

_MOST = 127


def narrowed(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`weight` [outputs, inputs] in 8 bits, and the scales [outputs] that make it what it was, to half a scale."""
    scales = (weight.abs().amax(dim=1) / _MOST).clamp_min(torch.finfo(weight.dtype).tiny)
    numbers = torch.round(weight / scales[:, None])
    return numbers.clamp_(-_MOST, _MOST).to(torch.int8), scales


@torch.no_grad()
def round_linears(model: nn.Module) -> int:
    """Round the weights of every `nn.Linear` below `model` where they are; an embedding that is tied to one is rounded
    with it. Returns how many there are."""
    weights = {id(layer.weight): layer.weight for layer in model.modules() if type(layer) is nn.Linear}
    for weight in weights.values():
        numbers, scales = narrowed(weight)
        weight.copy_(numbers * scales[:, None])
    return len(weights)
