"""A user's check in a process of its own: `python -P -m jobs.datasets.check_child FD`.

Over the socket FD one line of JSON comes in, `{"check": ..., "files": [...], "path": [...]}`, and one goes out,
`{"why": ...}`, empty when the check passed. What a check prints is no answer: it goes to the log.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

SHOWN = 500  # characters of what a check says


def why_not(check: str, files: Sequence[str]) -> str:
    """None and True pass; False, a text, and whatever is raised do not."""
    module, _, name = check.partition(":")
    try:
        import pyarrow.dataset as ds

        found = getattr(importlib.import_module(module), name)(ds.dataset(list(files), format="parquet"))
    except BaseException as error:  # noqa: BLE001 - also SystemExit: whatever a user's function does, the night is judged
        return f"{check} raised {type(error).__name__}: {error}"
    if found is None or found is True:
        return ""
    return found if isinstance(found, str) and found else f"{check} returned {found!r}"


def main(channel: socket.socket) -> None:
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with suppress(OSError):  # where memory runs out, this process goes and not the one that settles
        Path("/proc/self/oom_score_adj").write_text("1000")
    with channel.makefile("r") as lines:
        request = json.loads(lines.readline())
    sys.path[:] = request["path"]  # what can be imported where runs are settled can be here
    why = why_not(request["check"], request["files"])
    channel.sendall((json.dumps({"why": why[:SHOWN]}) + "\n").encode())


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
