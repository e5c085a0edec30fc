"""Which result lines may stand beside each other, and the figures that follow from them. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ops.bench.engines import OURS

Line = dict[str, Any]
KEY = ("model", "workload", "rows", "new_tokens_per_row", "threads")


def of_kind(lines: Iterable[Line], kind: str) -> list[Line]:
    return [line for line in lines if line["kind"] == kind]


def comparable(lines: Iterable[Line], cpu: str | None = None) -> list[Line]:
    """The cells of one processor (None: that of the newest line) and, per engine, of its newest versions.

    Of ours only those of the newest `engine/` are left: older ones are of another program.
    """
    cells = of_kind(lines, "cell")
    if not cells:
        return []
    cpu = cpu or cells[-1]["cpu"]
    cells = [line for line in cells if line["cpu"] == cpu]
    newest = {line["engine"]: _made_by(line) for line in cells}
    return [line for line in cells if _made_by(line) == newest[line["engine"]]]


def _made_by(line: Line) -> tuple[Any, ...]:
    return line["versions"], line["engine_tree"] if line["engine"] == OURS else None


@dataclass(frozen=True, slots=True)
class Group:
    """The comparable lines of the same work, by engine, and the least seconds that the machine needs for it."""

    key: tuple[Any, ...]
    lines: dict[str, list[Line]]
    limit_seconds: float | None = None

    def median(self, engine: str, name: str) -> float:
        return float(statistics.median(line[name] for line in self.lines[engine]))

    def times(self, peer: str, name: str = "seconds") -> float | None:
        """How many times faster ours is; None where a side is missing."""
        if OURS not in self.lines or peer not in self.lines:
            return None
        return self.median(peer, name) / self.median(OURS, name)

    def equal_rows(self, peer: str) -> int:
        """Outputs that are the same, token for token, in the last line of each."""
        ours, theirs = (self.lines[engine][-1]["row_hashes"] for engine in (OURS, peer))
        return sum(a == b for a, b in zip(ours, theirs, strict=True))

    @property
    def share_of_limit(self) -> float | None:
        if self.limit_seconds is None or OURS not in self.lines:
            return None
        return self.limit_seconds / self.median(OURS, "seconds")


def groups(lines: Iterable[Line], cpu: str | None = None) -> list[Group]:
    """One per model and work, in order. Cells with switches of their own are of other tables."""
    lines = list(lines)
    found: dict[tuple[Any, ...], dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    cells = comparable(lines, cpu)
    for line in cells:
        if not line["options"]:
            found[_key(line)][line["engine"]].append(line)
    here = {line["cpu"] for line in cells}
    limits = {_key(line): line["seconds"] for line in of_kind(lines, "limit") if line["cpu"] in here}
    return [Group(key, dict(found[key]), limits.get(key)) for key in sorted(found)]


def _key(line: Line) -> tuple[Any, ...]:
    return tuple(line[name] for name in KEY)
