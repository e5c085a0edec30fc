"""Small disks that a test can fill: a tmpfs, as root or in a namespace of users."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
MOUNTS_ARE_ALLOWED = "NM_MOUNTS_ARE_ALLOWED"  # set in the namespace


class SmallDisk:
    """A file system of a few megabytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """To the last block."""
        with self._filler.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self, kilobytes: int) -> None:
        """Of what fills it."""
        os.truncate(self._filler, self._filler.stat().st_size - (kilobytes << 10))

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def runs_elsewhere(test: str) -> bool:
    """Where this process may not mount, the test runs in a namespace in which it may. True: it has passed there."""
    if os.geteuid() == 0 or MOUNTS_ARE_ALLOWED in os.environ:
        return False
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-m", "pytest", "-q", test]
    subprocess.run(command, cwd=ROOT, env={**os.environ, MOUNTS_ARE_ALLOWED: "1"}, check=True)
    return True
