"""What a check found wrong, all of it, by the name of the check."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Findings:
    """Collects; `raise_if_any` tells everything at once."""

    about: str
    found: list[tuple[str, str]] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)

    def expect(self, check: str, holds: bool, message: str) -> None:
        if check not in self.checked:
            self.checked.append(check)
        if not holds:
            self.found.append((check, message))

    def equal(self, check: str, what: str, ours: Any, recount: Any) -> None:
        self.expect(check, ours == recount, f"{what}: recorded {ours!r}, counted {recount!r}")

    def raise_if_any(self) -> None:
        """Raises AssertionError with one line per finding, and one that says what was looked at."""
        if self.found:
            lines = [f"  {check}: {message}" for check, message in self.found]
            lines.append(f"  checked: {', '.join(sorted(self.checked))}")
            raise AssertionError("\n".join([self.about, *lines]))
