"""Attention in plain torch, on any device: sequences of similar context share one padded batch.

The cost is the sum of the visible contexts plus a bounded padding, never their square: no mask spans two sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from engine.attention.base import GroupSpans, Int64Array, LayerTraits
from engine.attention.pick import Best, pick_in_torch

_PADDING = 1.25  # a bucket's longest context over its shortest
_SCORES_PER_TILE = 1 << 19  # query tokens x keys of one prefill tile: bounds the score matrix


@dataclass(frozen=True, slots=True)
class _Bucket:
    """`S` sequences with `T` query tokens each over `L` keys: decodes of similar context, or one prefill tile."""

    num_sequences: int
    rows: torch.Tensor  # [S * T]: columns of the packed row
    slots: torch.Tensor  # [S * L]; slot 0, which is never written, where there is no key
    hidden: torch.Tensor  # [S, 1, T, L]: True where the query must not see the key


class PlainPlan:
    """One step's buckets of one group."""

    def __init__(self, buckets: list[_Bucket], num_tokens: int) -> None:
        self._buckets = buckets
        self._num_tokens = num_tokens

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, traits: LayerTraits
    ) -> torch.Tensor:
        num_heads = query.shape[0]
        out = query.new_empty((self._num_tokens, num_heads, values.shape[2]))
        for bucket in self._buckets:
            result = _attend_bucket(bucket, query, keys, values, traits)
            out.index_copy_(0, bucket.rows, result.to(out.dtype))
        return out


def _attend_bucket(
    bucket: _Bucket, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, traits: LayerTraits
) -> torch.Tensor:
    """Returns [S * T, num_heads, value_dim]. Heads that share a KV head are rows of one product: no K/V repeated."""
    kv_heads, sequences = keys.shape[0], bucket.num_sequences
    per_kv, tokens = query.shape[0] // kv_heads, len(bucket.rows) // bucket.num_sequences
    # [Hkv, G, S, T, D] -> [Hkv, S, G * T, D]
    q = query.index_select(1, bucket.rows).view(kv_heads, per_kv, sequences, tokens, -1).transpose(1, 2)
    q = q.reshape(kv_heads, sequences, per_kv * tokens, -1)
    k = keys.index_select(1, bucket.slots).view(kv_heads, sequences, -1, keys.shape[2])
    v = values.index_select(1, bucket.slots).view(kv_heads, sequences, -1, values.shape[2])

    scores = torch.matmul(q, k.transpose(2, 3)).float().mul_(traits.scale)
    if traits.softcap is not None:
        scores.div_(traits.softcap).tanh_().mul_(traits.softcap)
    shaped = scores.view(kv_heads, sequences, per_kv, tokens, -1)
    shaped.masked_fill_(bucket.hidden, float("-inf"))
    if traits.sinks is None:
        weights = torch.softmax(shaped, dim=-1)
    else:
        sinks = traits.sinks.float().view(kv_heads, 1, per_kv, 1, 1).expand(-1, sequences, -1, tokens, 1)
        weights = torch.softmax(torch.cat([shaped, sinks], dim=-1), dim=-1)[..., :-1]

    weights = weights.reshape(kv_heads, sequences, per_kv * tokens, -1).to(v.dtype)
    wrong = None
    if tokens > 1:  # a token does not depend on those behind it in its tile: 0 times infinity is no number
        wrong = ~torch.isfinite(v).all(-1)
        v.masked_fill_(wrong[..., None], 0)
    result = torch.matmul(weights, v).view(kv_heads, sequences, per_kv, tokens, -1)
    if wrong is not None:
        result.masked_fill_((wrong[:, :, None, None] & ~bucket.hidden).any(-1, keepdim=True), float("nan"))
    # [Hkv, S, G, T, Dv] -> [S, T, Hkv, G, Dv]
    return result.permute(1, 3, 0, 2, 4).reshape(sequences * tokens, query.shape[0], -1)


class PlainAttention:
    """The backend that works everywhere."""

    name = "torch"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def plan(self, spans: GroupSpans) -> PlainPlan:
        decodes = np.flatnonzero(spans.lengths == 1)
        buckets = [self._bucket(spans, members) for members in _similar(spans, decodes)]
        for chunk in np.flatnonzero(spans.lengths > 1):
            for begin, end in _tiles(spans, int(chunk)):
                buckets.append(self._bucket(spans, np.array([chunk]), begin, end))
        return PlainPlan(buckets, spans.num_tokens)

    def store(self, pool: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
        pool.index_copy_(1, slots, rows)

    def pick(self, tile: torch.Tensor, first_column: int, best: Best) -> None:
        pick_in_torch(tile, first_column, best)

    def _bucket(self, spans: GroupSpans, members: Int64Array, begin: int = 0, end: int = 1) -> _Bucket:
        """Queries `begin .. end` of each member's chunk, with every key that one of them sees."""
        size = spans.block_size
        first_query = spans.starts[members] + begin
        last_query = spans.starts[members] + end - 1
        first_key = np.zeros_like(first_query)
        if spans.window is not None:
            first_key = np.maximum(first_query - spans.window + 1, 0)
        num_keys = int((last_query + 1 - first_key).max())

        keys_at = first_key[:, None] + np.arange(num_keys)  # [S, L]
        queries_at = first_query[:, None] + np.arange(end - begin)  # [S, T]
        exists = keys_at <= last_query[:, None]
        column = np.where(exists, keys_at // size - spans.first_blocks[members, None], 0)
        blocks = spans.tables[members[:, None], column].astype(np.int64)
        slots = np.where(exists, blocks * size + keys_at % size, 0)

        hidden = keys_at[:, None, :] > queries_at[:, :, None]
        if spans.window is not None:
            hidden |= keys_at[:, None, :] <= queries_at[:, :, None] - spans.window
        rows = spans.offsets[members, None] + np.arange(begin, end)
        return _Bucket(
            num_sequences=len(members),
            rows=self._tensor(rows.reshape(-1)),
            slots=self._tensor(slots.reshape(-1)),
            hidden=self._tensor(hidden[:, None]),
        )

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)


def _similar(spans: GroupSpans, decodes: Int64Array) -> list[Int64Array]:
    """Cut the decodes, sorted by visible context, where the padding would pass its bound."""
    contexts = spans.starts[decodes] + 1
    if spans.window is not None:
        contexts = np.minimum(contexts, spans.window)
    order = np.argsort(-contexts, kind="stable")
    buckets: list[Int64Array] = []
    begin = 0
    for index in range(1, len(order) + 1):
        if index == len(order) or contexts[order[begin]] > _PADDING * contexts[order[index]] + spans.block_size:
            buckets.append(decodes[order[begin:index]])
            begin = index
    return buckets


def _tiles(spans: GroupSpans, chunk: int) -> list[tuple[int, int]]:
    """Cut a prefill chunk so that no score matrix passes its bound."""
    length = int(spans.lengths[chunk])
    context = int(spans.starts[chunk]) + length
    if spans.window is not None:
        context = min(context, spans.window + length)
    height = max(1, _SCORES_PER_TILE // context)
    return [(begin, min(begin + height, length)) for begin in range(0, length, height)]
