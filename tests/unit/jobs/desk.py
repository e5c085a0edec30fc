"""Where tests submit jobs, and what a killed planner leaves there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.options import SubmitOptions
from jobs.settings import Settings
from jobs.submit import Submitted, submit
from storage import layout, migrate
from storage.records import NewJob
from storage.repository import Repository
from tests.unit.jobs.tiny_model import make_model

GOOD = {"prompt": ["a", "b", "c"]}


class Desk:
    """Where a test submits: a model, a database, an input file and an output directory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        url = f"sqlite:///{folder}/db.sqlite"
        migrate.upgrade(url)
        self.repository = Repository(url)
        self.settings = Settings(home=folder, lease_seconds=60, heartbeat_seconds=0)
        self.input, self.out = folder / "in.parquet", folder / "out"
        self.options = SubmitOptions(
            inputs=(str(self.input),), output=self.out, model=str(make_model(folder / "model"))
        )
        self.write(GOOD)

    def write(self, columns: dict[str, Any]) -> None:
        pq.write_table(pa.table(columns), self.input)

    def submit(self, progress: Callable[[str, int, int], None] | None = None, **changes: Any) -> Submitted:
        watched = progress or (lambda stage, done, total: None)
        return submit(replace(self.options, **changes), self.repository, self.settings, watched)

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.out)) for path in self.out.rglob("*") if path.is_file())


def killed_while_planning(desk: Desk, lease_seconds: float, **changes: Any) -> None:
    """Leave what a planner leaves that was killed: a validating job with a lease, the start of a plan, spilled rows."""
    done = desk.submit(order="input", shard_rows=32)
    desk.repository.fail_job(done.job.id, None, "x")
    desk.repository.retire_job(done.job.id)
    names = ("run_key", "name", "model", "input_uri", "input_fingerprint", "output_uri", "spec", "spec_hash", "options")
    job = desk.repository.create_job(NewJob(**{name: getattr(done.job, name) for name in names} | changes))
    assert desk.repository.claim_job(job.id, "dead", lease_seconds) == 1
    folder = desk.out / layout.planning(1)
    (folder / ".plan.parquet.12.tmp").write_bytes(b"half")
    (folder / "sort-1").mkdir()
    (folder / "sort-1" / "run-000000.arrows").write_bytes(b"rows")
