"""Child processes that never outlive their parent, not even one that is killed with `kill -9`."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

PR_SET_PDEATHSIG = 1


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
    cwd: Path | None = None,
    keep_fds: Sequence[int] = (),
    death_signal: signal.Signals = signal.SIGTERM,
) -> subprocess.Popen[bytes]:
    """Start a child that gets `death_signal` when the *thread* that calls this ends; call it from a lasting one.

    The child has its own process group, so that Ctrl-C reaches the parent alone, which then stops it in order.
    """
    return subprocess.Popen(
        list(argv),
        env=None if env is None else dict(env),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=None if log is None else subprocess.STDOUT,
        cwd=cwd,
        pass_fds=tuple(keep_fds),
        process_group=0,
        preexec_fn=_dies_with(os.getpid(), death_signal),
    )


def import_path() -> str:
    """PYTHONPATH with which a child under `python -P` imports this very program, from an installation or a checkout."""
    root = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join([root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])


def end(child: subprocess.Popen[bytes], timeout: float) -> int:
    """SIGTERM, wait, SIGKILL if need be; the exit code."""
    if child.poll() is None:
        child.terminate()
    try:
        return child.wait(timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _dies_with(parent: int, death_signal: signal.Signals) -> Callable[[], None]:
    # The library is loaded before the fork: afterwards only plain system calls are safe.
    libc = ctypes.CDLL(None, use_errno=True)
    prctl = getattr(libc, "prctl", None)

    def arm() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
            if os.getppid() != parent:  # the parent died between fork and prctl
                os._exit(1)

    return arm
