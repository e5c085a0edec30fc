"""A schedule from its tick to what is current, in this process: every part is real but the clock and the engine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.abandoned import AbandonedJobs
from jobs.publishing import publish_job
from jobs.schedules.cron import Cron
from jobs.schedules.settling import Settler
from jobs.schedules.spec import parse_schedule
from jobs.schedules.tick import Ticker
from jobs.shard import run_shard
from storage.output import sweep
from storage.records import Job
from storage.schedule_records import Run, Schedule
from storage.states import JOB_FINAL
from tests.unit.jobs.bench import Bench, make_bench

START = "2026-10-31T12:00:00+00:00"


class Mill:
    """One schedule that fires at midnight UTC from November on, over one input file that grows."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.folder = bench, folder
        self.repository, self.settings = bench.tools.repository, bench.tools.settings
        self.now = datetime.fromisoformat(START)
        self.input, self.dataset = folder / "rows.parquet", folder / "stories"

    def declare(self, **changes: Any) -> Schedule:
        table: dict[str, Any] = {
            "cron": "0 0 * * *",
            "input": str(self.input),
            "dataset": str(self.dataset),
            "model": str(self.folder / "model"),
            "job": {"max_tokens": 6},
        }
        declared = parse_schedule("stories", table | changes, self.folder)
        cursor = Cron.parse(declared.cron, declared.zone).wall(self.now).isoformat(timespec="seconds")
        return self.repository.add_schedule(declared, cursor)

    def write(self, **columns: Any) -> None:
        pq.write_table(pa.table(columns), self.input)

    def night(self, day: int, *, shards: int | None = None, **columns: Any) -> Run:
        """The night before this day of November, with this input; its run, ended. `shards`: that get their turn."""
        self.write(**columns)
        self.now = datetime(2026, 11, day, 0, 0, 10, tzinfo=UTC)
        self.work(shards)
        return self.run(f"2026-11-{day:02d}")

    def work(self, shards: int | None = None) -> None:
        """What beat, control worker, worker and reconciler do, until nothing is left to do."""
        Ticker(self.settings, self.repository, clock=lambda: self.now.timestamp()).tick()
        planner = AbandonedJobs(self.settings, self.repository, "planner")
        planner.look()
        planner.wait()
        for job in self.repository.list_jobs():
            if job.state not in JOB_FINAL and job.tags:
                self._finish(job, shards)
        Settler(self.settings, self.repository, "settler").work()

    def _finish(self, job: Job, shards: int | None) -> None:
        for shard in self.repository.shards(job.id)[:shards]:
            run_shard(self.bench.tools, shard.id, threading.Event())
        self.repository.stop_jobs()
        self.repository.advance_jobs()
        epoch = self.repository.claim_job(job.id, "publisher", 60)
        assert epoch is not None
        published = publish_job(self.repository, self.repository.get_job(job.id), epoch)
        self.repository.complete_job(job.id, epoch, published.manifest_sha256)
        sweep(Path(job.output_uri), job.generation)

    def run(self, label: str) -> Run:
        [found] = self.repository.runs(self.repository.get_schedule("stories").id, labels=[label])
        return found


@contextmanager
def make_mill(folder: Path) -> Iterator[Mill]:
    with make_bench(folder) as bench:
        yield Mill(bench, folder)
