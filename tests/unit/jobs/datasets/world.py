"""One data set whose runs are settled."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.datasets.settle import Settled, settle_run
from jobs.datasets.terms import DatasetTerms
from jobs.settings import Settings
from storage.dataset.current import read_current
from storage.records import Job
from tests.unit.jobs.datasets.samples import ended_job
from tests.unit.storage.dataset.samples import NOON, Night, publish_night

MONDAY, TUESDAY = "2026-11-23", "2026-11-24"
CHECKS = "tests.unit.jobs.datasets.checks"


class World:
    """One data set."""

    def __init__(self, dataset: Path) -> None:
        self.dataset = dataset

    def publish(self, label: str = MONDAY, run: str = "1", rows: int = 6, **columns: Any) -> tuple[Night, Job]:
        night = publish_night(self.dataset, label, run, rows, columns)
        return night, ended_job(self.dataset, night)

    def settle(self, night: Night, job: Job, terms: DatasetTerms, now: datetime = NOON) -> Settled:
        allowed = ",".join(f"{CHECKS}:{name}" for name in ("broken", "exits", "hangs"))
        checks = Settings(dataset_checks=allowed, dataset_check_seconds=60)
        return settle_run(job, night.label, night.run, self.dataset, terms, settings=checks, now=lambda: now)

    def current(self) -> dict[str, str]:
        return {run.label: run.run for run in read_current(self.dataset).runs}


class Dying:
    def reach(self) -> None:
        raise KeyboardInterrupt
