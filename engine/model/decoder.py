"""Decoder layers in one call of the C kernel, or two around an attention that is not the kernel's: kernel/13_layer.c.

A layer of ten calls keeps the other threads waiting for Python, whose code and data each product drives out of the
processor's cache again. A layer is recognised by its parts, and taken only if the model's logits keep every bit, as
they must where the same functions run in the same order.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.attention.base import LayerTraits
from engine.attention.compile import load_kernel
from engine.errors import ModelRefused
from engine.model.hooks import AttentionSeat, LayerHandler, NotingCache
from engine.model.layer_parts import LayerParts
from engine.model.layers import DeclaredLayer
from engine.model.native_linear import Product

_log = logging.getLogger(__name__)
_CANNOT = (TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError, ModelRefused)
_KEYWORDS = frozenset({"position_embeddings", "position_ids", "cache_position", "past_key_values", "use_cache"})


class _Norm(ctypes.Structure):
    _fields_ = (("gain", ctypes.c_void_p), ("eps", ctypes.c_float))


class _Front(ctypes.Structure):
    _fields_ = (
        *((name, Product) for name in ("query", "key", "value")),
        *((name, _Norm) for name in ("before", "of_query", "of_key")),
        *((name, ctypes.c_int64) for name in ("hidden", "heads", "kv_heads", "dim")),
    )


class _Back(ctypes.Structure):
    _fields_ = (
        *((name, Product) for name in ("output", "gated", "down")),
        *((name, _Norm) for name in ("after_attention", "before_gate", "after_down")),
        *((name, ctypes.c_int64) for name in ("hidden", "inner")),
    )


def scratch(count: int) -> torch.Tensor:
    """Numbers that a layer needs until it ends. Nothing is kept: the next layer finds the same place in the heap."""
    return torch.empty(count)


class FusedLayer:
    """Stands where a decoder layer's forward stood, and calls it for all but the common case."""

    def __init__(
        self,
        kernel: ctypes.CDLL,
        parts: LayerParts,
        own_forward: Callable[..., Any],
        seat: AttentionSeat,
        index: int,
        traits: LayerTraits,
    ) -> None:
        self.has_run = False
        self._kernel = kernel
        self._parts = parts  # keeps the weights alive that the kernel points to
        self._own_forward = self.__wrapped__ = own_forward
        self._seat, self._index, self._traits = seat, index, traits
        self._front, self._back = _front(parts), _back(parts)
        self._front_at, self._back_at = ctypes.addressof(self._front), ctypes.addressof(self._back)
        self._hidden = parts.projections[0].in_features
        turned = (parts.heads + parts.kv_heads) * parts.dim
        self._parts_need = self._hidden + max(turned, parts.down.in_features)  # numbers per token
        self._whole_needs = self._parts_need + 2 * (turned + parts.heads)

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **keywords: Any) -> Any:
        tables: Any = keywords.get("position_embeddings")
        if args or not _are_common(keywords) or not self._is_common(hidden_states, tables):
            return self._own_forward(hidden_states, *args, **keywords)
        self.has_run = True
        with torch._C.DisableTorchFunction():  # what happens here is ours, whatever mode the model runs in
            cos, sin = tables
            return self._run(hidden_states, cos, sin)

    def _is_common(self, hidden: torch.Tensor, tables: Any) -> bool:
        if not isinstance(tables, tuple) or len(tables) != 2 or hidden.dim() != 3:
            return False
        narrowed = self._parts.narrowed
        if narrowed is not None and narrowed.columns_of(hidden.shape[1]) is not None:
            return False
        shape = (1, hidden.shape[1], self._parts.dim)
        rows = hidden.shape[0] == 1 and hidden.shape[2] == self._hidden
        fit = rows and all(isinstance(table, torch.Tensor) and table.shape == shape for table in tables)
        return fit and all(each.is_contiguous() and each.dtype == torch.float32 for each in (hidden, *tables))

    def _run(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        tokens, threads = hidden.shape[1], torch.get_num_threads()
        out = torch.empty_like(hidden)
        x, into, tables = hidden.data_ptr(), out.data_ptr(), (cos.data_ptr(), sin.data_ptr())
        inline = self._seat.handler.inline(self._index, self._parts.heads, self._traits)
        if inline is not None:
            room = scratch(tokens * self._whole_needs)
            self._kernel.nightmill_layer(
                self._front_at, self._back_at, *inline, x, tokens, *tables, room.data_ptr(), into, threads
            )
            return out
        room, parts = scratch(tokens * self._parts_need), self._parts
        rows = torch.empty((tokens, parts.heads + 2 * parts.kv_heads, parts.dim))
        self._kernel.nightmill_layer_front(
            self._front_at, x, tokens, *tables, room.data_ptr(), rows.data_ptr(), threads
        )
        query, key, value = torch.split(rows.transpose(0, 1), [parts.heads, parts.kv_heads, parts.kv_heads])
        attended = self._seat.handler.attend(self._index, query, key, value, self._traits, None)
        self._kernel.nightmill_layer_back(self._back_at, attended.data_ptr(), x, tokens, room.data_ptr(), into, threads)
        return out


def _are_common(keywords: dict[str, Any]) -> bool:
    """What a step of ours passes along, and nothing else."""
    given = {name for name, value in keywords.items() if value is not None}
    return given <= _KEYWORDS and isinstance(keywords.get("past_key_values"), NotingCache)


def _declared(kernel: ctypes.CDLL) -> ctypes.CDLL:
    """With the types of our calls, so that plain numbers will do."""
    address, number, count = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    arguments = {
        "nightmill_layer": (*[address] * 6, number, *[address] * 4, count),
        "nightmill_layer_front": (address, address, number, *[address] * 4, count),
        "nightmill_layer_back": (*[address] * 3, number, address, address, count),
    }
    for name, types in arguments.items():
        function = getattr(kernel, name)
        function.argtypes, function.restype = types, None
    return kernel


def _norm(parts: LayerParts, place: str) -> _Norm:
    norm = parts.norms.get(place)
    return _Norm() if norm is None else _Norm(norm.gain.data_ptr(), norm.eps)


def _front(parts: LayerParts) -> _Front:
    query, key, value, _ = [one.product() for one in parts.projections]
    return _Front(
        query=query,
        key=key,
        value=value,
        before=_norm(parts, "before"),
        of_query=_norm(parts, "of_query"),
        of_key=_norm(parts, "of_key"),
        hidden=parts.projections[0].in_features,
        heads=parts.heads,
        kv_heads=parts.kv_heads,
        dim=parts.dim,
    )


def _back(parts: LayerParts) -> _Back:
    return _Back(
        output=parts.projections[3].product(),
        gated=parts.gate.product(),
        down=parts.down.product(),
        after_attention=_norm(parts, "after_attention"),
        before_gate=_norm(parts, "before_gate"),
        after_down=_norm(parts, "after_down"),
        hidden=parts.down.out_features,
        inner=parts.down.in_features,
    )


@dataclass(frozen=True, slots=True)
class _Call:
    """What one layer has asked its attention for."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    scale: float
    softcap: float | None
    has_sinks: bool

    def fits(self, parts: LayerParts) -> bool:
        shape = (self.heads, self.kv_heads, self.key_dim, self.value_dim)
        return shape == (parts.heads, parts.kv_heads, parts.dim, parts.dim) and not self.has_sinks


class _Noting:
    """A handler of attention calls that notes what each layer asks for."""

    def __init__(self, own: LayerHandler) -> None:
        self._own = own
        self.calls: dict[int, list[_Call]] = {}

    def inline(self, layer: int, heads: int, traits: LayerTraits) -> None:
        return None

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        traits: LayerTraits,
        window: int | None,
    ) -> torch.Tensor:
        shape = (query.shape[0], key.shape[0], key.shape[2], value.shape[2])
        call = _Call(*shape, traits.scale, traits.softcap, traits.sinks is not None)
        self.calls.setdefault(layer, []).append(call)
        return self._own.attend(layer, query, key, value, traits, window)


def fuse_layers(
    model: nn.Module,
    declared: Sequence[DeclaredLayer],
    seat: AttentionSeat,
    trials: Sequence[Callable[[], torch.Tensor]],
) -> int:
    """Each trial runs the model once and returns logits. Returns how many layers were fused: all that have the parts,
    or none where one of them changes a bit."""
    found = {
        layer: parts
        for layer in model.modules()
        if "forward" not in vars(layer) and (parts := LayerParts.of(layer)) is not None
    }
    if not found:
        return 0
    expected, calls = _noted(seat, trials)
    kernel, fused = _declared(load_kernel()), {}
    for layer, parts in found.items():
        index: Any = getattr(layer.self_attn, "layer_idx", None)
        asked = calls.get(index, [])
        alike = len(asked) == len(trials) and len(set(asked)) == 1 and asked[0].fits(parts)
        if alike and declared[index].reads == index and not declared[index].has_state:
            traits = LayerTraits(scale=asked[0].scale, softcap=asked[0].softcap)
            fused[layer] = FusedLayer(kernel, parts, layer.forward, seat, index, traits)
    for layer, forward in fused.items():
        layer.forward = forward
    if _same(expected, trials) and all(forward.has_run for forward in fused.values()):
        return len(fused)
    for layer in fused:
        del layer.forward
    return 0


def _noted(
    seat: AttentionSeat, trials: Sequence[Callable[[], torch.Tensor]]
) -> tuple[list[torch.Tensor], dict[int, list[_Call]]]:
    """The logits of each trial, and what each layer asked for in all of them."""
    own, noting = seat.handler, _Noting(seat.handler)
    seat.handler = noting
    try:
        return [trial() for trial in trials], noting.calls
    finally:
        seat.handler = own


def _same(expected: Sequence[torch.Tensor], trials: Sequence[Callable[[], torch.Tensor]]) -> bool:
    try:
        return all(torch.equal(trial(), logits) for trial, logits in zip(trials, expected, strict=True))
    except _CANNOT as error:
        _log.warning("decoder layers run in parts, which is slower: the model cannot run them whole: %r", error)
        return False
