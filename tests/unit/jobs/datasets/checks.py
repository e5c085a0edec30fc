"""What users write as checks of their own, good and bad."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as ds


def fine(run: ds.Dataset) -> None:
    assert run.count_rows() > 0


def has_prompts(run: ds.Dataset) -> bool:
    return "prompt" in run.schema.names


def no_refusals(run: ds.Dataset) -> str | None:
    refused = sum("sorry" in (text or "") for batch in run.to_batches() for text in batch["output_text"].to_pylist())
    return f"{refused} texts say sorry" if refused else None


def never(run: ds.Dataset) -> bool:
    return False


def broken(run: ds.Dataset) -> None:
    raise KeyError("no_such_column")


def leaves(run: ds.Dataset) -> None:
    sys.exit(3)


def hangs(run: ds.Dataset) -> None:
    """With a child; the two leave their numbers beside the run's first file."""
    child = subprocess.Popen(["sleep", "600"])
    draft = Path(run.files[0]).with_name("pids.draft")
    draft.write_text(f"{os.getpid()} {child.pid}")
    draft.rename(draft.with_name("pids"))
    child.wait()


def exits(run: ds.Dataset) -> None:
    os._exit(3)


def is_killed(run: ds.Dataset) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def prints(run: ds.Dataset) -> None:
    print('{"why": "printed"}')
    os.write(1, b'{"why": "written"}\n')


def writes_everywhere(run: ds.Dataset) -> None:
    for fd in range(3, 64):
        try:
            os.write(fd, b"rubbish\n")
        except OSError:
            continue


def goes_first(run: ds.Dataset) -> str | None:
    """When memory runs out."""
    score = Path("/proc/self/oom_score_adj").read_text().strip()
    return None if score == "1000" else f"its score is {score}"


def mumbles(run: ds.Dataset) -> str:
    return "half a \ud83d sign, and a \0"


def sees_no_secrets(run: ds.Dataset) -> str | None:
    seen = [name for name in os.environ if name in ("HOOK_SECRET", "NIGHTMILL_DATABASE_URL", "PGPASSWORD")]
    return f"seen: {seen}" if seen or "KEPT" not in os.environ else None
