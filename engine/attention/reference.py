"""The specification: attention of one sequence, written for the reader. Every other implementation equals this one."""

from __future__ import annotations

import torch

from engine.attention.base import LayerTraits


def attend_reference(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    start: int,
    window: int | None,
    traits: LayerTraits,
) -> torch.Tensor:
    """Attention of the queries at `start, start + 1, ...` over keys `0 .. L`.

    `query` [num_heads, T, key_dim], `keys` [num_kv_heads, L, key_dim], `values` [num_kv_heads, L, value_dim];
    returns [T, num_heads, value_dim]. Scores and softmax are float32 whatever the inputs are.
    """
    repeat = query.shape[0] // keys.shape[0]
    keys = keys.repeat_interleave(repeat, dim=0).float()
    values = values.repeat_interleave(repeat, dim=0).float()

    scores = torch.matmul(query.float(), keys.transpose(1, 2)) * traits.scale
    if traits.softcap is not None:
        scores = traits.softcap * torch.tanh(scores / traits.softcap)

    queries_at = torch.arange(start, start + query.shape[1], device=query.device)[:, None]
    keys_at = torch.arange(keys.shape[1], device=query.device)[None, :]
    visible = keys_at <= queries_at
    if window is not None:
        visible &= keys_at > queries_at - window
    scores = scores.masked_fill(~visible, float("-inf"))

    if traits.sinks is None:
        weights = torch.softmax(scores, dim=-1)
    else:
        sinks = traits.sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
        weights = torch.softmax(torch.cat([scores, sinks], dim=-1), dim=-1)[..., :-1]
    # What a query does not see is left out, not multiplied by 0, which infinity would survive as no number.
    wrong = ~torch.isfinite(values).all(-1, keepdim=True)
    result = torch.matmul(weights, values.masked_fill(wrong, 0.0))
    result.masked_fill_((visible & wrong.transpose(1, 2)).any(-1, keepdim=True), float("nan"))
    return result.transpose(0, 1).to(query.dtype).contiguous()
