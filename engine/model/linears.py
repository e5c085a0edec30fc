"""Who multiplies: the C kernel, oneDNN or torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from engine.attention.compile import CannotCompile
from engine.config import EngineConfig
from engine.errors import ModelRefused
from engine.model.native_linear import NativeLinears
from engine.model.packed import LinearMaker, OneDnnLinear, plain_linear
from engine.model.steady import SteadyLinear, SteadyLinears

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Linears:
    """`make` makes every linear layer; `native` is there where they are the kernel's. `make_exact` is for matrices that
    are no linear layer's, which 8 bits leave as they are."""

    make: LinearMaker
    make_exact: LinearMaker
    native: NativeLinears | None = None


def choose_linears(config: EngineConfig, packable: bool) -> Linears:
    if config.weights_in_8_bits and not packable:
        raise ModelRefused("weights in 8 bits are for models on a CPU whose torch has oneDNN")
    if not (config.packed_weights and packable):
        return Linears(plain_linear, plain_linear)
    if config.weights_in_8_bits:
        return _narrow(config)
    native = _native() if config.native_linear else None
    make = SteadyLinears(config.max_batch_tokens, native or SteadyLinear) if config.strict else native or OneDnnLinear
    return Linears(make, make, native)


def _narrow(config: EngineConfig) -> Linears:
    """Raises ModelRefused without the kernel: in any other way they would be floats again."""
    try:
        native, exact = NativeLinears(narrow=True), NativeLinears()
    except CannotCompile as error:
        raise ModelRefused(f"weights in 8 bits need the C kernel: {error}") from error
    if config.strict:
        most = config.max_batch_tokens
        return Linears(SteadyLinears(most, native), SteadyLinears(most, exact), native)
    return Linears(native, exact, native)


def _native() -> NativeLinears | None:
    try:
        return NativeLinears()
    except CannotCompile as error:
        _log.warning("linear layers run in oneDNN, which is slower: %s", error)
        return None
