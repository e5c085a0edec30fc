"""Call a user's check, which may hang, die or print what it likes: in a process of its own, for so long and no longer.

This is care, not a fence: a check runs as the user who settles, and only the settings can allow it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from jobs.children import import_path, spawn
from jobs.datasets.check_child import SHOWN
from jobs.datasets.terms import DatasetTerms
from jobs.settings import Settings

ADDRESSES = ("NIGHTMILL_", "PG")
"""How variables begin that may hold the password of broker or database. No check is given one."""

LONGEST = 1 << 16  # bytes of an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRules:
    """`allowed`: the checks that may be called. `seconds`: for each. `secret`: a variable that none is given."""

    allowed: Set[str]
    seconds: float
    secret: str | None = None

    @staticmethod
    def of(settings: Settings, terms: DatasetTerms) -> CheckRules:
        own = terms.check_seconds
        seconds = settings.dataset_check_seconds if own is None else own
        return CheckRules(allowed=settings.allowed_checks, seconds=seconds, secret=terms.webhook_secret_env)


def why_not(check: str, files: Sequence[Path], rules: CheckRules) -> str:
    """Why the run does not pass; empty if it does. Nothing of the check runs any more when this returns.

    Raises ChildProcessError when it died: of a mistake that is no exception, or for want of memory, which may pass.
    """
    if check not in rules.allowed:
        return f"NIGHTMILL_DATASET_CHECKS does not allow {check}; add it where runs are settled"
    request = {
        "check": check,
        "files": [str(file) for file in files],
        "path": [str(each) or os.getcwd() for each in sys.path],
    }
    ours, its = socket.socketpair()
    with ours, its:
        command = [sys.executable, "-P", "-m", "jobs.datasets.check_child", str(its.fileno())]
        environment, fds = _environment(rules), (its.fileno(),)
        process = spawn(command, env=environment, keep_fds=fds, death_signal=signal.SIGKILL)
        its.close()
        with _ending(process):
            try:
                answer = _ask(ours, (json.dumps(request) + "\n").encode(), time.monotonic() + rules.seconds)
            except TimeoutError:
                return f"{check} ran for more than {rules.seconds:g} s (check_seconds) and was stopped"
    return _read(check, answer, process.returncode)


def _ask(channel: socket.socket, request: bytes, deadline: float) -> bytes:
    """What comes back until a line is whole, or nobody is there any more. Raises TimeoutError."""
    answer = bytearray()
    with suppress(ConnectionError):
        channel.settimeout(max(deadline - time.monotonic(), 1e-3))
        channel.sendall(request)
        while not answer.endswith(b"\n") and len(answer) < LONGEST:
            channel.settimeout(max(deadline - time.monotonic(), 1e-3))
            piece = channel.recv(LONGEST)
            if not piece:
                break
            answer += piece
    return bytes(answer)


def _read(check: str, answer: bytes, code: int) -> str:
    if not answer:
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended its process with code {code}"
        raise ChildProcessError(f"the check {check} {end} before it answered; what it printed is in the log")
    try:
        why = json.loads(answer)["why"]
        assert isinstance(why, str), "an answer is a text"
    except (ValueError, KeyError, TypeError, AssertionError):
        return f"{check} gave no answer that can be read, but {answer[:SHOWN]!r}"
    return why.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")[:SHOWN]


def _environment(rules: CheckRules) -> Mapping[str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(ADDRESSES) and name != rules.secret
    }
    return kept | {"PYTHONPATH": import_path()}


@contextmanager
def _ending(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """At the end of the block, or of this process, kill it and what it has started. Its exit code is its own if it had
    ended by itself."""

    def end() -> None:
        if process.returncode is None:  # not waited for yet, so the number is still its own
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    atexit.register(end)
    try:
        yield
    finally:
        end()
        atexit.unregister(end)
