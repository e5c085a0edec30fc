"""RMS norms (arXiv 1910.07467) in one pass of the C kernel, where transformers takes five to eight passes in torch."""

from __future__ import annotations

import ctypes
import inspect
import logging

import torch
from torch import nn

from engine.attention.compile import CannotCompile, load_kernel
from engine.model.packed import source_text

_log = logging.getLogger(__name__)
_TRIED_ROWS = 4
_TOLERANCE = 1e-5


class FusedNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * gain` over the last dimension, float32 on CPU."""

    def __init__(self, kernel: ctypes.CDLL, weight: torch.Tensor, gain: torch.Tensor, eps: float) -> None:
        super().__init__()
        self._kernel = kernel
        self.gain = gain.detach().contiguous()
        self.weight = weight  # some models read its type or device
        self.eps = self.variance_epsilon = eps

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        dim = self.gain.shape[0]
        # Heads and tokens may lie in either order: rows are independent, so the order of the memory will do.
        if rows.stride(-1) != 1 or not torch.ops.aten.is_non_overlapping_and_dense(rows):
            rows = rows.contiguous()
        out = torch.empty_like(rows)
        self._kernel.nightmill_rms_norm(
            ctypes.c_void_p(rows.data_ptr()),
            ctypes.c_int64(rows.numel() // dim),
            ctypes.c_int64(dim),
            ctypes.c_void_p(self.gain.data_ptr()),
            ctypes.c_float(self.eps),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_int32(torch.get_num_threads()),
        )
        return out


def fuse_norms(model: nn.Module) -> int:
    """Replace the RMS norms below a float32 model on CPU; returns how many. None without a C compiler.

    A norm is recognised by what it computes, not by its name alone: some multiply by the weight, some by 1 + weight.
    """
    try:
        kernel = load_kernel()
    except CannotCompile as error:
        _log.warning("norms run in plain torch, which is slower: %s", error)
        return 0
    kernel.nightmill_rms_norm.restype = None
    texts = {kind: source_text(kind) for kind in {type(module) for module in model.modules()}}
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if f"self.{name}.weight" in texts[type(parent)]:
                continue  # it computes with the weight itself
            fused = _fused(kernel, child)
            if fused is not None:
                setattr(parent, name, fused)
                count += 1
    return count


def _fused(kernel: ctypes.CDLL, norm: nn.Module) -> FusedNorm | None:
    """The same norm from the kernel, or None when this is no norm that it can compute."""
    weight = getattr(norm, "weight", None)
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    is_norm = "RMSNorm" in type(norm).__name__ and len(inspect.signature(norm.forward).parameters) == 1
    if not is_norm or not isinstance(weight, torch.Tensor) or weight.dim() != 1 or not isinstance(eps, float):
        return None
    rows = torch.linspace(-3.0, 2.0, _TRIED_ROWS * weight.shape[0]).view(_TRIED_ROWS, -1)
    with torch.inference_mode():
        expected = norm(rows)
        for gain in (weight, 1.0 + weight):
            fused = FusedNorm(kernel, weight, gain, eps)
            if torch.allclose(fused(rows), expected, rtol=_TOLERANCE, atol=_TOLERANCE):
                return fused
    return None
