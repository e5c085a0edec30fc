"""The sampling options that one row brings, out of its columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.columns import SAMPLING
from jobs.sampling import SamplingInvalid

Frozen = tuple[tuple[str, Any], ...]


def gather_overrides(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """One row's overrides; a column of its own wins over the same name in `sampling_params`."""
    given = dict(zip(names, values, strict=True))
    nested = given.pop(SAMPLING, None)
    if isinstance(nested, str):
        try:
            nested = json.loads(nested)
        except ValueError as error:
            raise SamplingInvalid(f"{SAMPLING} is not JSON: {error}") from error
    if nested is not None and not isinstance(nested, dict):
        raise SamplingInvalid(f"{SAMPLING} is {nested!r}; it must be an object with sampling options")
    own = {name: value for name, value in given.items() if value is not None}
    return {name: value for name, value in (nested or {}).items() if value is not None} | own


def freeze(given: Mapping[str, Any]) -> Frozen:
    """Hashable. True and 1 are equal as keys, so the type is part of it."""
    return tuple((name, (type(value).__name__, _hashable(value))) for name, value in sorted(given.items()))


def thaw(given: Frozen) -> dict[str, Any]:
    return {name: json.loads(value) if kind in ("list", "dict") else value for name, (kind, value) in given}


def _hashable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value
