"""Quality gates: what is measured of a published run before its data set takes it in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One gate: what was observed and what was wanted, and in words why it did not pass (else empty)."""

    name: str
    passed: bool
    observed: float | None
    wanted: str
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> GateResult:
        return GateResult(**fields)
