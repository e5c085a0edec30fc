"""A schedule with its database, input and clock: `Office` ticks at whatever time a test says."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.schedules.cron import Cron
from jobs.schedules.spec import parse_schedule
from jobs.schedules.tick import Ticker
from jobs.settings import Settings
from storage import migrate
from storage.records import JobId
from storage.repository import Repository
from storage.schedule_records import Run, Schedule
from storage.states import RunState
from tests.unit.jobs.tiny_model import make_model

START = "2026-11-24T12:00:00+00:00"  # a Tuesday noon


class Office:
    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        url = f"sqlite:///{folder}/db.sqlite"
        migrate.upgrade(url)
        self.repository = Repository(url)
        self.settings = Settings(home=folder, **settings)
        self.model = make_model(folder / "model")
        self.now = datetime.fromisoformat(START)

    def write(self, name: str, *prompts: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"prompt": pa.array(prompts, pa.string())}), path)
        return path

    def add(self, name: str = "nightly", **changes: Any) -> Schedule:
        """A schedule that fires at midnight UTC, from now on."""
        table: dict[str, Any] = {
            "cron": "0 0 * * *",
            "zone": "UTC",
            "input": "in/*.parquet",
            "dataset": f"data-{name}",
            "model": str(self.model),
            "job": {"max_tokens": 4},
        }
        declared = parse_schedule(name, table | changes, self.folder)
        cursor = Cron.parse(declared.cron, declared.zone).wall(self.now).isoformat(timespec="seconds")
        return self.repository.add_schedule(declared, cursor)

    def at(self, moment: str) -> None:
        self.now = datetime.fromisoformat(moment).replace(tzinfo=UTC)

    def ticker(self) -> Ticker:
        return Ticker(self.settings, self.repository, clock=lambda: self.now.timestamp())

    def tick(self, moment: str | None = None) -> None:
        """At a moment in UTC, or now."""
        if moment is not None:
            self.at(moment)
        self.ticker().tick()

    def runs(self, name: str = "nightly") -> list[Run]:
        """Oldest label first."""
        return self.repository.runs(self.repository.get_schedule(name).id)[::-1]

    def states(self, name: str = "nightly") -> dict[str, RunState]:
        return {run.label: run.state for run in self.runs(name)}

    def run(self, label: str, name: str = "nightly") -> Run:
        return next(run for run in self.runs(name) if run.label == label)

    def job_of(self, label: str, name: str = "nightly") -> Any:
        job_id = self.run(label, name).job_id
        assert job_id is not None, f"the run {label} has no job"
        return self.repository.get_job(job_id)

    def end_job(self, label: str) -> JobId:
        """Its job fails, and the run is settled."""
        job = self.job_of(label)
        self.repository.fail_job(job.id, None, "x")
        run = self.run(label)
        epoch = self.repository.claim_run(run, "settler", 60.0)
        assert epoch is not None
        self.repository.finish_run(run.id, epoch, RunState.FAILED, reason="x")
        return JobId(job.id)
