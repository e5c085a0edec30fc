"""Attention on CPU by a C kernel that reads the blocks where they lie. Equal to the reference but for rounding."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from engine.attention.base import GroupSpans, LayerTraits
from engine.attention.compile import load_kernel
from engine.attention.pick import Best, pick_in_torch
from engine.attention.tiles import Walk, plan_walk
from engine.cache.groups import LayerGroup

_MAX_ROWS, _MAX_DIM, _DIM_UNIT = 32, 512, 8  # as in kernel/3_many_rows.c, and what its tiles have room for


class _Step(ctypes.Structure):
    _fields_ = (
        ("tables", ctypes.c_void_p),
        ("first_blocks", ctypes.c_void_p),
        ("columns", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("tiles", ctypes.c_void_p),
        ("stages", ctypes.c_void_p),
        ("num_stages", ctypes.c_int64),
        ("table_width", ctypes.c_int64),
        ("block_size", ctypes.c_int64),
        ("window", ctypes.c_int64),
    )


class Layer(ctypes.Structure):
    _fields_ = (
        ("query", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("sinks", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("maxima", ctypes.c_void_p),
        ("totals", ctypes.c_void_p),
        ("query_head_stride", ctypes.c_int64),
        ("query_token_stride", ctypes.c_int64),
        ("num_slots", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("key_dim", ctypes.c_int64),
        ("value_dim", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("threads", ctypes.c_int32),
        ("steady", ctypes.c_int32),
        ("seconds", ctypes.c_double),
    )


class NativePlan:
    """One step of one group as the kernel wants it. Keeps the arrays alive that the kernel points to."""

    def __init__(self, kernel: ctypes.CDLL, spans: GroupSpans, share: bool, steady: bool) -> None:
        self._kernel = kernel
        self._spans = spans
        self._share = share
        self._steady = steady
        self._walks: dict[int, tuple[Walk, _Step]] = {}

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, traits: LayerTraits
    ) -> torch.Tensor:
        if query.stride(2) != 1:
            query = query.contiguous()
        heads, tokens, _ = query.shape
        layer = self.layer(heads, keys, values, traits)
        sinks = None if traits.sinks is None else traits.sinks.detach().contiguous()
        walk, step = self._step(heads // layer.kv_heads)
        out = torch.empty((tokens, heads, layer.value_dim))
        half_way = torch.empty((2, tokens, heads)) if walk.hands_on else None
        layer.sinks = None if sinks is None else sinks.data_ptr()
        layer.query, layer.out = query.data_ptr(), out.data_ptr()
        layer.query_head_stride, layer.query_token_stride = query.stride(0), query.stride(1)
        if half_way is not None:
            layer.maxima, layer.totals = half_way[0].data_ptr(), half_way[1].data_ptr()
        layer.threads = torch.get_num_threads()
        self._kernel.nightmill_attend(ctypes.byref(step), ctypes.byref(layer))
        return out

    def layer(self, heads: int, keys: torch.Tensor, values: torch.Tensor, traits: LayerTraits) -> Layer:
        """What stays the same from step to step, but for sinks."""
        kv_heads, slots, value_dim = values.shape
        return Layer(
            keys=keys.data_ptr(),
            values=values.data_ptr(),
            num_slots=slots,
            heads=heads,
            kv_heads=kv_heads,
            key_dim=keys.shape[2],
            value_dim=value_dim,
            scale=traits.scale,
            softcap=traits.softcap or 0.0,
            steady=self._steady,
        )

    def step(self, per_kv: int) -> int:
        """The address of the step as the kernel reads it; it lives as long as the plan."""
        return ctypes.addressof(self._step(per_kv)[1])

    def _step(self, per_kv: int) -> tuple[Walk, _Step]:
        """The tiles for `per_kv` query heads per KV head; all layers of a group have the same in practice."""
        if per_kv not in self._walks:
            spans = self._spans
            walk = plan_walk(spans, max(1, _MAX_ROWS // per_kv), self._share)
            step = _Step(
                tables=spans.tables.ctypes.data,
                first_blocks=spans.first_blocks.ctypes.data,
                columns=walk.columns.ctypes.data,
                positions=walk.positions.ctypes.data,
                tiles=walk.tiles.ctypes.data,
                stages=walk.stages.ctypes.data,
                num_stages=len(walk.stages) - 1,
                table_width=spans.tables.shape[1],
                block_size=spans.block_size,
                window=spans.window or 0,
            )
            self._walks[per_kv] = (walk, step)
        return self._walks[per_kv]


class NativeAttention:
    """The backend for float32 on CPU. `share`: decodes attend to what they share together. `steady`: a row has the same
    bits in every batch. Raises CannotCompile where there is no kernel."""

    name = "native"

    def __init__(self, share: bool = True, steady: bool = False) -> None:
        self._kernel = load_kernel()
        self._kernel.nightmill_attend.restype = None
        self._kernel.nightmill_pick.restype = self._kernel.nightmill_store.restype = None
        self._share = share
        self._steady = steady

    def plan(self, spans: GroupSpans) -> NativePlan:
        return NativePlan(self._kernel, spans, self._share, self._steady)

    def store(self, pool: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor) -> None:
        if rows.stride(2) != 1:
            rows = rows.contiguous()
        heads, tokens, dim = rows.shape
        self._kernel.nightmill_store(
            ctypes.c_void_p(pool.data_ptr()),
            ctypes.c_int64(pool.shape[1]),
            ctypes.c_void_p(slots.data_ptr()),
            ctypes.c_void_p(rows.data_ptr()),
            *(ctypes.c_int64(number) for number in (heads, tokens, dim, rows.stride(0), rows.stride(1))),
            ctypes.c_int32(torch.get_num_threads()),
        )

    def pick(self, tile: torch.Tensor, first_column: int, best: Best) -> None:
        if tile.stride(1) != 1 or tile.dtype != torch.float32:
            pick_in_torch(tile, first_column, best)
            return
        self._kernel.nightmill_pick(
            ctypes.c_void_p(tile.data_ptr()),
            ctypes.c_int64(tile.shape[0]),
            ctypes.c_int64(tile.shape[1]),
            ctypes.c_int64(tile.stride(0)),
            ctypes.c_int64(first_column),
            ctypes.byref(best.native()),
            ctypes.c_int32(torch.get_num_threads()),
        )


def unsupported(groups: Sequence[LayerGroup], num_heads: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the kernel cannot serve this model, or None when it can."""
    if device.type != "cpu":
        return f"the model runs on {device}"
    if dtype != torch.float32:
        return f"the model runs in {dtype}"
    for group in groups:
        for dim in (group.key_dim, group.value_dim):
            if dim % _DIM_UNIT or dim > _MAX_DIM:
                return f"head dimension {dim} is not a multiple of {_DIM_UNIT} up to {_MAX_DIM}"
        if num_heads // group.num_kv_heads > _MAX_ROWS:
            return f"{num_heads} heads share {group.num_kv_heads} KV heads"
    return None
