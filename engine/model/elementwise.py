"""What layers compute number by number, in one pass of the C kernel: gated activations and rotary embeddings.

Both are recognised by what they compute on numbers that are tried out, and left to the model elsewhere.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from engine.attention.compile import CannotCompile, load_kernel
from engine.model.native_linear import NativeLinears

_log = logging.getLogger(__name__)
_ROTATE = "apply_rotary_pos_emb"  # transformers' name for it, in each model's own file
_ACTIVATIONS = (0, 1)  # as in kernel/8_elementwise.c: silu, gelu by tanh
_TOLERANCE = 1e-5


class FusedGate(nn.Module):
    """`down(act(gate(x)) * up(x))`."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def __init__(self, kernel: ctypes.CDLL, own: Any, activation: int) -> None:
        super().__init__()
        self._kernel = kernel
        self._activation = activation
        self.gate_proj, self.up_proj, self.down_proj = own.gate_proj, own.up_proj, own.down_proj
        self.gated: nn.Module | None = None  # what does as both and the activation

    def pack(self, make: NativeLinears) -> None:
        """Make one product of gate, up and activation. Their first weights are let go."""
        assert isinstance(self.gate_proj, nn.Linear)
        assert isinstance(self.up_proj, nn.Linear)
        self.gated = make.gate(self.gate_proj, self.up_proj, self._activation)
        del self.gate_proj, self.up_proj

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(self._multiplied(x) if self.gated is None else self.gated(x))
        return out

    def _multiplied(self, x: torch.Tensor) -> torch.Tensor:
        gate: torch.Tensor = self.gate_proj(x).contiguous()
        up: torch.Tensor = self.up_proj(x).contiguous()
        self._kernel.nightmill_gate(
            ctypes.c_void_p(gate.data_ptr()),
            ctypes.c_void_p(up.data_ptr()),
            ctypes.c_int64(gate.numel()),
            ctypes.c_int32(self._activation),
            ctypes.c_int32(torch.get_num_threads()),
        )
        return gate


class FusedRotation:
    """Stands where a model's `apply_rotary_pos_emb(query, key, cos, sin)` stood, and calls it for all but the common
    case: [1, heads, T, dim] rotated over the whole of `dim`."""

    def __init__(self, kernel: ctypes.CDLL, own: Callable[..., Any]) -> None:
        self._kernel = kernel
        self._own = own

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *others: Any, **more: Any
    ) -> Any:
        with torch._C.DisableTorchFunction():  # what happens there is ours, whatever mode the model runs in
            if not others and not more and all(_is_common(rows, cos, sin) for rows in (query, key)):
                return self._rotate(query, cos, sin), self._rotate(key, cos, sin)
        return self._own(query, key, cos, sin, *others, **more)

    def _rotate(self, rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        _, heads, tokens, dim = rows.shape
        out = torch.empty((1, tokens, heads, dim))
        self._kernel.nightmill_rotate(
            ctypes.c_void_p(rows.data_ptr()),
            *(ctypes.c_int64(number) for number in (tokens, heads, dim, rows.stride(2), rows.stride(1))),
            ctypes.c_void_p(cos.data_ptr()),
            ctypes.c_void_p(sin.data_ptr()),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_int32(torch.get_num_threads()),
        )
        return out.transpose(1, 2)


def _is_common(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> bool:
    if rows.dim() != 4 or rows.stride(3) != 1 or rows.shape[3] % 2:
        return False
    shape = (rows.shape[0], rows.shape[2], rows.shape[3])
    tables = all(table.shape == shape and table.is_contiguous() for table in (cos, sin))
    return rows.shape[0] == 1 and tables and all(each.dtype == torch.float32 for each in (rows, cos, sin))


def fuse_elementwise(model: nn.Module) -> int:
    """Replace gates and rotations of a float32 model on CPU; returns how many. None without a C compiler."""
    try:
        kernel = load_kernel()
    except CannotCompile as error:
        _log.warning("gates and rotations run in plain torch, which is slower: %s", error)
        return 0
    kernel.nightmill_gate.restype = kernel.nightmill_rotate.restype = None
    return _fuse_gates(model, kernel) + _fuse_rotations(model, kernel)


def _fuse_gates(model: nn.Module, kernel: ctypes.CDLL) -> int:
    """Layers of one class and one activation compute the same: the first of them is tried."""
    found: dict[tuple[Any, ...], int | None] = {}
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            linears = [getattr(child, part, None) for part in ("gate_proj", "up_proj", "down_proj")]
            others = set(dict(child.named_children())) - {"gate_proj", "up_proj", "down_proj", "act_fn"}
            if others or not all(type(linear) is nn.Linear for linear in linears):
                continue
            kind = (type(child), repr(child))
            if kind not in found:
                found[kind] = _activation_of(kernel, child)
            activation = found[kind]
            if activation is not None:
                setattr(parent, name, FusedGate(kernel, child, activation))
                count += 1
    return count


def pack_gates(model: nn.Module, make: NativeLinears) -> int:
    """Returns how many there are."""
    gates = [module for module in model.modules() if isinstance(module, FusedGate)]
    for gate in gates:
        gate.pack(make)
    return len(gates)


def _activation_of(kernel: ctypes.CDLL, child: Any) -> int | None:
    same = (each for each in _ACTIVATIONS if _same_gate(child, FusedGate(kernel, child, each)))
    return next(same, None)


@torch.inference_mode()
def _same_gate(own: Any, fused: FusedGate) -> bool:
    """With the gate's own weights, and rows for which its activation takes values from all over."""
    rows = torch.randn((4, own.gate_proj.in_features), generator=torch.Generator().manual_seed(0))
    rows *= 4.0 / fused.gate_proj(rows).std().clamp_min(1e-6)
    try:
        expected = own(rows)
    except (TypeError, ValueError, RuntimeError, IndexError):  # it takes something else than rows
        return False
    if not isinstance(expected, torch.Tensor) or expected.shape != (4, own.down_proj.out_features):
        return False
    return torch.allclose(fused(rows), expected, rtol=_TOLERANCE, atol=_TOLERANCE * float(expected.abs().max()))


def _fuse_rotations(model: nn.Module, kernel: ctypes.CDLL) -> int:
    """Each layer that rotates gets its own forward once more, in which that one name means ours."""
    made: dict[type[nn.Module], FunctionType | None] = {}
    count = 0
    for module in model.modules():
        kind = type(module)
        if kind not in made:
            made[kind] = _with_fused_rotation(kind.forward, kernel)
        function = made[kind]
        if function is not None and "forward" not in vars(module):
            module.forward = MethodType(function, module)
            count += 1
    return count


def _with_fused_rotation(forward: Any, kernel: ctypes.CDLL) -> FunctionType | None:
    if not isinstance(forward, FunctionType) or _ROTATE not in forward.__code__.co_names:
        return None
    own = forward.__globals__.get(_ROTATE)
    if own is None:
        return None
    fused = FusedRotation(kernel, own)
    if not _same_rotation(own, fused):
        return None
    names = forward.__globals__ | {_ROTATE: fused}
    again = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    again.__kwdefaults__ = forward.__kwdefaults__
    return again


@torch.inference_mode()
def _same_rotation(own: Any, fused: FusedRotation) -> bool:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn((1, heads, 3, 8), generator=generator) for heads in (4, 2))
    cos, sin = torch.randn((2, 1, 3, 8), generator=generator)
    try:
        expected = own(query, key, cos, sin)
    except (TypeError, ValueError, RuntimeError, IndexError):  # it takes its arguments in another way
        return False
    if not isinstance(expected, tuple) or len(expected) != 2:
        return False
    return all(torch.equal(a, b) for a, b in zip(fused(query, key, cos, sin), expected, strict=True))
