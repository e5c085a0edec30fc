"""Whether there is room to write: a worker whose disk is nearly full claims nothing."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

NO_ROOM = "no room on the disk"  # why a gate is closed
LEAST_BYTES = 16 << 20  # what must be free after a disk was full, however small the reserve is


def free_bytes(path: Path) -> int:
    """Of the file system that holds the path, which may not be there yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


class DiskWatch:
    """Remembers the directories that have no room, and says so once. Thread-safe."""

    def __init__(self, reserve_bytes: int, free: Callable[[Path], int] = free_bytes) -> None:
        """`reserve_bytes`: what must stay free."""
        self._reserve = reserve_bytes
        self._free = free
        self._lock = threading.Lock()
        self._short: dict[Path, int] = {}  # and what must be free before it is written to again

    def has_room(self, path: Path) -> bool:
        """Whether this directory may be written to; one that may not is remembered."""
        return path not in self.short_of([path])

    def is_full(self, path: Path) -> None:
        """A write has failed for lack of room."""
        with self._lock:
            is_new = path not in self._short
            self._short[path] = max(self._reserve, LEAST_BYTES)
        if is_new:
            log.error("disk_full path=%s: no shard is claimed until there is room", path)

    def short_of(self, also: list[Path] | None = None) -> list[Path]:
        """The directories that have no room now, of those that had none and these."""
        with self._lock:
            wanted = dict.fromkeys(also or [], self._reserve) | self._short
        missing = {path: needed for path, needed in wanted.items() if not self._is_enough(path, needed)}
        with self._lock:
            for path in missing.keys() - self._short.keys():
                log.error(
                    "disk_low path=%s reserve=%d: no shard is claimed until so many bytes are free", path, self._reserve
                )
            for path in wanted.keys() & self._short.keys() - missing.keys():
                log.info("disk_has_room path=%s", path)
                del self._short[path]
            self._short |= missing
        return sorted(missing)

    def _is_enough(self, path: Path, needed: int) -> bool:
        try:
            return self._free(path) >= needed
        except OSError as error:
            log.warning("disk_unknown path=%s error=%s", path, error)
            return True  # writing there will say more
