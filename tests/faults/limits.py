"""How much memory a process may take: a control group below our own, or its address space."""

from __future__ import annotations

import os
import resource
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CONTROL = Path("/sys/fs/cgroup")


@contextmanager
def more_memory(pid: int, megabytes: int) -> Iterator[bool]:
    """The process may take so much more memory than it has. Whether the kernel kills it when it takes too much; where
    control groups are not ours, it is refused the memory instead."""
    group = _own_group()
    if group is None:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        limit = (int(status["VmSize"].split()[0]) << 10) + (megabytes << 20)
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        yield False
        return
    try:
        (group / "cgroup.procs").write_text(str(pid))  # what it has is counted where it was
        yield _set_limit(group, megabytes)
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(left)
        group.rmdir()


def _own_group() -> Path | None:
    """A new group below the one of this process."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("memory", ""):
            parent = CONTROL / controllers / path.lstrip("/")
            files = {"memory": "memory.limit_in_bytes", "": "memory.max"}
            group = parent / f"nightmill-test-{uuid.uuid4().hex[:8]}"
            with suppress(OSError):
                group.mkdir()
                if os.access(group / files[controllers], os.W_OK):
                    return group
                group.rmdir()
    return None


def _set_limit(group: Path, megabytes: int) -> bool:
    names = ("memory.limit_in_bytes", "memory.max", "memory.swap.max", "memory.memsw.limit_in_bytes")
    for name in names:
        if (group / name).exists():
            (group / name).write_text("0" if name == "memory.swap.max" else str(megabytes << 20))
    return True
