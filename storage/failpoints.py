"""Named places at which a test makes the program die, stop, or run out of disk. Without a test they cost a look-up.

A specification is `name:action` with commas between several; `name:action@3` acts when the place is reached the third
time. Actions: `kill` (SIGKILL of this process), `stop` (SIGSTOP, until somebody lets it go on), `full` (no space left).
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType

NAMES = (
    *("claim.before", "claim.after"),  # `before`: the hint has left the queue and is known to this process alone
    *("segment.before_fsync", "segment.after_fsync", "segment.before_row", "segment.after_row"),
    *("commit.before_fsync", "commit.after_fsync", "rename.before", "rename.after"),
    *("commit.before_sql", "commit.after_sql"),
    *("publish.before_parts", "publish.after_parts", "publish.before_manifest", "publish.after_manifest"),
    *("publish.before_sql", "publish.after_sql", "dispatch.after_sql"),
    *("fire.before_sql", "fire.after_sql"),
    *("settle.before_verdict", "settle.after_verdict", "settle.before_current", "settle.after_current"),
    *("settle.after_card", "settle.after_move", "settle.after_retention", "settle.before_sql"),
    "tell.after_webhook",
)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    # to this thread: sent to the process it might reach another one first, and this one would go on for a while
    with _armed.turn:
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


ACTIONS: Mapping[str, Callable[[], None]] = MappingProxyType({"kill": _kill, "stop": _stop, "full": _full})


class Failpoint:
    """Acts when it is reached for the `at`th time, and only then."""

    __slots__ = ("_act", "_left")

    def __init__(self, action: str, at: int) -> None:
        self._act = ACTIONS[action]
        self._left = at

    def reach(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()


class _Armed:
    """The failpoints of this process: none, until `arm` is called once at its start."""

    __slots__ = ("points", "turn")

    def __init__(self) -> None:
        self.points: Mapping[str, Failpoint] = MappingProxyType({})
        self.turn: AbstractContextManager[object] = nullcontext()


_armed = _Armed()


def arm(specification: str, turn: AbstractContextManager[object] | None = None) -> None:
    """Set the failpoints of this process. `turn` is held while it is stopped: whatever other threads hold with it, as
    the only write lock of a database, is free then. Raises ValueError for a name or an action that there is none of."""
    _armed.points = MappingProxyType(parse(specification))
    _armed.turn = nullcontext() if turn is None else turn


def parse(specification: str) -> dict[str, Failpoint]:
    points: dict[str, Failpoint] = {}
    for entry in filter(None, specification.split(",")):
        name, _, rest = entry.partition(":")
        action, _, at = rest.partition("@")
        if name not in NAMES or action not in ACTIONS:
            raise ValueError(f"no failpoint {entry!r}; there are {', '.join(NAMES)} with {', '.join(ACTIONS)}")
        points[name] = Failpoint(action, int(at or 1))
    return points


def reach(name: str) -> None:
    """The program has come to this place."""
    point = _armed.points.get(name)
    if point is not None:
        point.reach()
