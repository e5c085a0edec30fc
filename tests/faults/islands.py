"""Network namespaces: a process on an island reaches each server over a cable of its own, which can be cut.

A cut cable drops everything and tells nobody: no reset, no refusal, as when a switch dies.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import SystemRandom


def why_not() -> str | None:
    """Why this process may not make network namespaces."""
    name = f"nm-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode == 0:
        _ip("netns", "del", name)
        return None
    return f"network namespaces need root and iproute2: {made.stderr.strip()}"


@dataclass(frozen=True, slots=True)
class Island:
    name: str
    hosts: dict[str, str]  # the address at this end of each cable

    @property
    def within(self) -> tuple[str, ...]:
        """What starts a process there."""
        return ("ip", "netns", "exec", self.name)

    def cut(self, *cables: str) -> None:
        for cable in cables:
            _ip("link", "set", self._device(cable), "down")

    def heal(self) -> None:
        for cable in self.hosts:
            _ip("link", "set", self._device(cable), "up")

    def _device(self, cable: str) -> str:
        return f"{self.name}{cable[0].lower()}"


@contextmanager
def island(*cables: str) -> Iterator[Island]:
    """Names of cables differ in their first letter."""
    name = f"nm{uuid.uuid4().hex[:8]}"
    net = f"10.213.{SystemRandom().randrange(256)}"
    _ip("netns", "add", name)
    try:
        _ip("-n", name, "link", "set", "lo", "up")
        made = Island(name, {cable: f"{net}.{4 * number + 1}" for number, cable in enumerate(cables)})
        for number, cable in enumerate(cables):
            here, there = made._device(cable), f"{cable[0].lower()}0"
            _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
            _ip("addr", "add", f"{net}.{4 * number + 1}/30", "dev", here)
            _ip("-n", name, "addr", "add", f"{net}.{4 * number + 2}/30", "dev", there)
            _ip("link", "set", here, "up")
            _ip("-n", name, "link", "set", there, "up")
        yield made
    finally:
        _ip("netns", "del", name)  # its cables go with it


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
