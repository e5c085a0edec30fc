"""Everything a model computes over the packed row beside its known layers, held to one law: a row's bits do not depend
on the rows beside it.

Most functions keep to it: they move numbers, round once, or go through each row in one order. Two kinds do not, and
get another way to be computed. A matrix product chooses its order of sums by the number of rows. A function of single
numbers takes them by whole vectors and the rest one by one, with other roundings; which numbers are the rest depends
on how many there are and on how they fall to the threads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from engine.errors import ModelRefused
from engine.model.packed import LinearMaker

_VECTOR = 64  # numbers; a multiple of what any processor takes at once
_PIECE = 1 << 14  # numbers; torch lets one thread do so few

_PRODUCTS = frozenset({"linear", "matmul", "__matmul__"})


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BY_VECTORS = _names("silu gelu sigmoid softplus mish elu pow")
MEASURED = _names("softmax log_softmax sum mean norm cumsum layer_norm exp log tanh cos sin")
"""Steady as far as tests/unit/engine/model/test_rowwise.py can see."""

_EACH_ALONE = _names(
    """add add_ sub sub_ mul mul_ multiply div div_ neg neg_ abs reciprocal clamp clamp_ minimum maximum relu
    square sqrt rsqrt max min amax argmax topk sort eq ne lt le gt ge greater less where
    logical_and logical_or logical_not __eq__ __invert__ __and__ __or__ bool __bool__ to float type
    type_as long int one_hot nonzero"""
)
_MOVES = _names(
    """__get__ __getitem__ __setitem__ __len__ size dim numel stride item tolist is_floating_point _set_grad_enabled
    arange zeros new_empty new_zeros zeros_like empty_like ones_like full_like clone contiguous copy_ detach embedding
    index_select index_add_ gather scatter_ masked_fill masked_fill_ cat concatenate stack split chunk unbind view
    reshape flatten unflatten transpose permute squeeze unsqueeze expand repeat repeat_interleave narrow pad"""
)
_STEADY = MEASURED | _EACH_ALONE | _MOVES


def by_vectors(func: Callable[..., torch.Tensor], numbers: torch.Tensor, *args: Any, **keywords: Any) -> torch.Tensor:
    """A function of single numbers, of whole vectors only and by one thread at a time."""
    width = numbers.shape[-1] if numbers.dim() else 1
    rows = functional.pad(numbers.reshape(-1, width), (0, -width % _VECTOR)).contiguous()
    pieces = torch.split(rows, max(1, _PIECE // rows.shape[1]))
    done = torch.cat([func(piece, *args, **keywords) for piece in pieces])
    return done[:, :width].reshape(numbers.shape)


def _of_one_tensor(args: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Called as `by_vectors` can call it."""
    others = (*args[1:], *keywords.values())
    return isinstance(args[0], torch.Tensor) and not any(
        isinstance(each, torch.Tensor) or each is True for each in others
    )


class _Weights:
    """What a model holds for good, so that a matrix which is part of it can be packed once."""

    def __init__(self, model: nn.Module) -> None:
        self._places = frozenset(weight.untyped_storage().data_ptr() for weight in model.parameters())

    def check(self, matrix: torch.Tensor, where: str) -> None:
        """Raises ModelRefused for a matrix that may be gone by the next step, and its place taken by another."""
        if matrix.dim() != 2 or matrix.untyped_storage().data_ptr() not in self._places:
            raise ModelRefused(
                f"strict mode: {where} multiplies by a matrix of {tuple(matrix.shape)}, which is no weight; a row's "
                "bits then depend on the rows beside it"
            )


class RowByRow(TorchFunctionMode):
    """While this is on, the functions of torch that do not keep to the law are computed otherwise.

    The matrices of products are weights, which are packed when they are first used, beside the weight itself.
    """

    def __init__(self, model: nn.Module, make_linear: LinearMaker) -> None:
        super().__init__()
        self._make_linear = make_linear
        self._weights = _Weights(model)
        self._linears: dict[tuple[Any, ...], Callable[[torch.Tensor], torch.Tensor]] = {}
        self.is_on = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        name = func.__name__
        if name in _BY_VECTORS:
            return by_vectors(func, *args, **keywords)
        if name == "linear":
            return self._linear(*args, **keywords)
        if name in _PRODUCTS:
            return self._linear(args[0], args[1].transpose(-1, -2))
        return func(*args, **keywords)

    def _linear(self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        key = (weight.data_ptr(), weight.shape, weight.stride())
        linear = self._linears.get(key)
        if linear is None:
            self._weights.check(weight, "a step")
            linear = self._linears[key] = self._make_linear(weight, None)
        out = linear(rows)
        return out if bias is None else out + bias


class RowByRowForward:
    """Stands where a module's forward stood."""

    def __init__(self, own_forward: Callable[..., Any], mode: RowByRow) -> None:
        self._own_forward = self.__wrapped__ = own_forward  # its parameters are looked at
        self._mode = mode

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        if self._mode.is_on:
            return self._own_forward(*args, **keywords)
        self._mode.is_on = True
        try:
            with self._mode:
                return self._own_forward(*args, **keywords)
        finally:
            self._mode.is_on = False


class _Audit(TorchFunctionMode):
    """Finds the modules that call what does not keep to the law, and refuses what nobody knows."""

    def __init__(self, model: nn.Module, known: Collection[nn.Module]) -> None:
        super().__init__()
        self._weights = _Weights(model)
        self._known = frozenset(known)
        self._running: list[nn.Module] = []
        self.found: dict[nn.Module, None] = {}

    def enter(self, module: nn.Module, _args: Any) -> None:
        self._running.append(module)

    def leave(self, _module: nn.Module, _args: Any, _out: Any) -> None:
        self._running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        if self._running and self._known.isdisjoint(self._running):
            name, module = func.__name__, self._running[-1]
            if name in _PRODUCTS:
                self._weights.check(args[1], type(module).__name__)
            if name in _PRODUCTS or (name in _BY_VECTORS and _of_one_tensor(args, keywords)):
                self.found[module] = None
            elif name not in _STEADY:
                raise ModelRefused(
                    f"strict mode: {type(module).__name__} computes {name!r}, and it is not known whether a row's bits "
                    "then depend on the rows beside it"
                )
        return func(*args, **keywords)


def hold_row_by_row(
    model: nn.Module, run: Callable[[], object], known: Collection[nn.Module], make_linear: LinearMaker
) -> int:
    """Hold `model` to the law; `run` runs it once. Returns in how many modules something had to be replaced.

    `known` modules are right as they are: those of our own, and mixers, which see one sequence at a time. Raises
    ModelRefused for what is not known.
    """
    audit = _Audit(model, known)
    hooks = [module.register_forward_pre_hook(audit.enter) for module in model.modules()]
    hooks += [module.register_forward_hook(audit.leave, always_call=True) for module in model.modules()]
    try:
        with audit:
            run()
    finally:
        for hook in hooks:
            hook.remove()
    mode = RowByRow(model, make_linear)
    for module in audit.found:
        module.forward = RowByRowForward(module.forward, mode)
    return len(audit.found)
