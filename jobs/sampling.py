"""How the tokens of a row are chosen: the job's defaults, and a row's own overrides on top of them.

Text enters here only as stop strings; what the engine gets is `engine.request.SamplingParams`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from engine.request import SamplingParams

MAX_SAMPLES = 10_000
SEED_LIMIT = 2**63  # seeds are stored as int64


class SamplingInvalid(ValueError):
    """A sampling option has a value that cannot be honoured; the message names option and value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters with stop strings: `params.seed` is filled in per row, `params.num_samples` is `n`."""

    params: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()

    def as_spec(self) -> dict[str, Any]:
        """JSON-ready, without the seed: seeds are a matter of the job and the row."""
        spec = asdict(self.params) | {"stop": list(self.stop)}
        spec["n"] = spec.pop("num_samples")
        spec["stop_token_ids"] = list(spec["stop_token_ids"])
        del spec["seed"]
        return spec

    def overridden(self, overrides: Mapping[str, Any]) -> Sampling:
        """These defaults with some options replaced. `overrides` has been through `check_overrides`."""
        changes = dict(overrides)
        stop = tuple(changes.pop("stop", self.stop))
        if "n" in changes:
            changes["num_samples"] = changes.pop("n")
        if "stop_token_ids" in changes:
            changes["stop_token_ids"] = tuple(changes["stop_token_ids"])
        return Sampling(params=replace(self.params, **changes), stop=stop)

    @staticmethod
    def from_spec(spec: Mapping[str, Any]) -> Sampling:
        """The inverse of `as_spec`."""
        return Sampling().overridden(spec)


def check_overrides(given: Mapping[str, Any], vocab_size: int | None = None) -> dict[str, Any]:
    """The given options in their canonical types; nulls are dropped. Raises SamplingInvalid."""
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        rule = RULES.get(name)
        if rule is None:
            raise SamplingInvalid(f"{name!r} is not a sampling option; known are {', '.join(sorted(RULES))}")
        checked[name] = rule(name, value)
    for token_id in checked.get("stop_token_ids", ()):
        if vocab_size is not None and token_id >= vocab_size:
            raise SamplingInvalid(f"stop_token_ids has {token_id}; the model's vocabulary ends at {vocab_size - 1}")
    return checked


def dump_overrides(checked: Mapping[str, Any]) -> str | None:
    """The plan's `sampling` column: canonical JSON, null when there is nothing to say."""
    return json.dumps(checked, sort_keys=True, ensure_ascii=False) if checked else None


def _integer(low: int, high: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        # Nullable integer columns often arrive as floats.
        whole = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value) and value.is_integer())
        if isinstance(value, bool) or not whole or not low <= value <= high:
            raise SamplingInvalid(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
        return int(value)

    return check


def _number(accepts: Callable[[float], bool], law: str) -> Callable[[str, Any], float]:
    def check(name: str, value: Any) -> float:
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        # Infinities, and integers that no float can hold; a number that is none passes no comparison.
        if not numeric or not abs(value) <= sys.float_info.max or not accepts(value):
            raise SamplingInvalid(f"{name} is {value!r}; it must be {law}")
        return float(value)

    return check


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise SamplingInvalid(f"{name} is {value!r}; it must be true or false")
    return value


def _stops(name: str, value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, (list, tuple)) or not all(isinstance(stop, str) and stop for stop in stops):
        raise SamplingInvalid(f"{name} is {value!r}; it must be a string or a list of strings, none of them empty")
    return list(stops)


def _token_ids(name: str, value: Any) -> list[int]:
    if not isinstance(value, (list, tuple)):
        raise SamplingInvalid(f"{name} is {value!r}; it must be a list of token ids")
    check = _integer(0, 2**31 - 1)
    return [check(name, token_id) for token_id in value]


RULES: Mapping[str, Callable[[str, Any], Any]] = {
    "max_tokens": _integer(1, 2**31 - 1),
    "temperature": _number(lambda x: x >= 0, "a number of at least 0"),
    "top_k": _integer(0, 2**31 - 1),
    "top_p": _number(lambda x: 0 < x <= 1, "a number above 0 and up to 1"),
    "min_p": _number(lambda x: 0 <= x <= 1, "a number from 0 to 1"),
    "repetition_penalty": _number(lambda x: x > 0, "a number above 0"),
    "presence_penalty": _number(lambda x: -2 <= x <= 2, "a number from -2 to 2"),
    "frequency_penalty": _number(lambda x: -2 <= x <= 2, "a number from -2 to 2"),
    "stop": _stops,
    "stop_token_ids": _token_ids,
    "seed": _integer(0, SEED_LIMIT - 1),
    "n": _integer(1, MAX_SAMPLES),
    "ignore_eos": _flag,
}
"""Every sampling option that a row or a job may set, with the check of its value."""

assert {rule for rule in RULES if rule not in ("n", "stop")} | {"num_samples"} == {
    each.name for each in fields(SamplingParams)
}, "a sampling parameter of the engine has no rule here"
