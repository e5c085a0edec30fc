"""Linear layers by the C kernel, which asks for the weights of the next panel while it multiplies this one."""

from __future__ import annotations

import ctypes

import torch
from torch import nn

from engine.attention.compile import CannotCompile, load_kernel
from engine.attention.pick import Best
from engine.model.narrow import narrowed
from engine.model.packed import PackedLinear


class Product(ctypes.Structure):
    """As in kernel/11_linear.c."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("panels", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("x_stride", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("threads", ctypes.c_int32),
        ("gate", ctypes.c_int32),
    )


_NO_GATE = -1


class NativeLinear(PackedLinear):
    """A row's result has the same bits however many rows come with it. `narrow`: weights are kept in 8 bits."""

    def __init__(
        self, kernel: ctypes.CDLL, weight: torch.Tensor, bias: torch.Tensor | None, narrow: bool = False
    ) -> None:
        super().__init__(weight)
        more = -len(weight) % kernel.nightmill_panel()
        rows = _filled(weight, more)
        self._scales: torch.Tensor | None = None
        if narrow:
            rows, scales = narrowed(rows)
            self._scales = scales.contiguous()
        panels = rows.view(-1, kernel.nightmill_panel(), self.in_features)
        self._panels = panels.transpose(1, 2).contiguous()
        self.weight = weight.new_empty(0)  # some models read its type or device
        self.bias = None if bias is None else _filled(bias, more)
        self._kernel = kernel
        self._gate = _NO_GATE

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        flat = self._flat(rows)
        out = torch.empty((len(flat), self.out_features))
        self._kernel.nightmill_linear(ctypes.byref(self._product(flat, out.data_ptr())))
        return out.view(*rows.shape[:-1], self.out_features)

    def pick(self, rows: torch.Tensor, first_column: int, best: Best) -> None:
        """Carry `best` over what the layer makes of `rows` [rows, in_features], as tokens from `first_column` on."""
        flat, threads = self._flat(rows), torch.get_num_threads()
        count = self._kernel.nightmill_linear_pick_parts(ctypes.c_int64(self.out_features))
        parts = Best.start(count * len(flat), flat.device)
        scratch = torch.empty(self._kernel.nightmill_linear_pick_scratch(threads))
        self._kernel.nightmill_linear_pick(
            ctypes.byref(self._product(flat, None)),
            ctypes.c_int64(first_column),
            ctypes.byref(best.native()),
            ctypes.byref(parts.native()),
            ctypes.c_void_p(scratch.data_ptr()),
        )

    def product(self) -> Product:
        """Without rows."""
        return Product(
            panels=self._panels.data_ptr(),
            scales=None if self._scales is None else self._scales.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
            inputs=self.in_features,
            outputs=self.out_features,
            out_stride=self.out_features,
            gate=self._gate,
        )

    def _flat(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.dtype != torch.float32 or rows.shape[-1] != self.in_features:
            raise TypeError(f"a layer of {self.in_features} float32 inputs was given {rows.dtype} {tuple(rows.shape)}")
        flat = rows.reshape(-1, self.in_features)
        return flat if flat.stride(1) == 1 else flat.contiguous()

    def _product(self, flat: torch.Tensor, out: int | None) -> Product:
        whole = self.product()
        whole.x, whole.rows, whole.x_stride = flat.data_ptr(), len(flat), flat.stride(0)
        whole.out, whole.threads = out, torch.get_num_threads()
        return whole


class NativeGate(NativeLinear):
    """`act(gate(x)) * up(x)` as one product; `activation` as in kernel/8_elementwise.c."""

    def __init__(
        self, kernel: ctypes.CDLL, gate: nn.Linear, up: nn.Linear, activation: int, narrow: bool = False
    ) -> None:
        half = kernel.nightmill_panel() // 2
        biases = _bias(gate), _bias(up)
        super().__init__(kernel, _side_by_side(gate.weight, up.weight, half), _side_by_side(*biases, half), narrow)
        self.out_features = gate.out_features
        self._gate = activation


def _bias(linear: nn.Linear) -> torch.Tensor:
    bias: torch.Tensor | None = linear.bias
    return linear.weight.new_zeros(linear.out_features) if bias is None else bias


def _filled(rows: torch.Tensor, more: int) -> torch.Tensor:
    """With `more` rows of zeros at the end."""
    return torch.cat([rows.detach(), rows.new_zeros((more, *rows.shape[1:]))])


def _side_by_side(left: torch.Tensor, right: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows of the one, `count` rows of the other, and so on; both end with zeros."""
    parts = [torch.split(_filled(rows, -len(rows) % count), count) for rows in (left, right)]
    return torch.cat([part for both in zip(*parts, strict=True) for part in both])


class NativeLinears:
    """Makes layers of the kernel. Raises CannotCompile where there is none, or none that would be faster."""

    def __init__(self, narrow: bool = False) -> None:
        self._narrow = narrow
        self._kernel = load_kernel()
        self._kernel.nightmill_linear.restype = self._kernel.nightmill_linear_pick.restype = None
        self._kernel.nightmill_linear_pick_scratch.restype = ctypes.c_int64
        self._kernel.nightmill_linear_pick_parts.restype = ctypes.c_int64
        if not self._kernel.nightmill_multiplies_fast():
            raise CannotCompile("this processor has no fused multiply-add of 8 numbers")

    def __call__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> NativeLinear:
        return NativeLinear(self._kernel, weight, bias, self._narrow)

    def gate(self, gate: nn.Linear, up: nn.Linear, activation: int) -> NativeGate:
        return NativeGate(self._kernel, gate, up, activation, self._narrow)
