"""What tests of refusals share: an input that is fine, and how a refusal looks from outside."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.repository import Repository

GOOD = {"prompt": ["w1 w2", "w3", "w4 w5 w6"]}


def write(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def assert_refused(done: subprocess.CompletedProcess[str], code: int, words: Sequence[str]) -> None:
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def job_states(database: Path) -> list[str]:
    """States of all jobs, oldest first; none where no database was made."""
    if not database.exists():
        return []
    repository = Repository(f"sqlite:///{database}")
    try:
        return [job.state.value for job in reversed(repository.list_jobs())]
    finally:
        repository.close()
