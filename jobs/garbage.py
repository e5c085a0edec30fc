"""What of published jobs only older generations need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from storage.parquet.generations import collect, collectable
from storage.parquet.manifest import newest_generation
from storage.records import Job, JobId
from storage.repository import Repository

MANY_JOBS = 100_000


@dataclass(frozen=True, slots=True)
class Garbage:
    """Files and folders of one output directory that can go. Below `newest` alone they are listed."""

    job: Job
    newest: int
    paths: tuple[Path, ...]

    @property
    def num_bytes(self) -> int:
        files = (file for path in self.paths for file in (path.rglob("*") if path.is_dir() else (path,)))
        return sum(file.stat().st_size for file in files if file.is_file())

    def collect(self) -> None:
        collect(Path(self.job.output_uri), self.newest)


def find_garbage(repository: Repository, job_id: JobId | None) -> Iterator[Garbage]:
    """Of one job, or of all that still have their output directory. Raises NoSuchJob.

    A generation that is on the disk and not yet in SQL, or the other way round, does not count: its publisher may have
    to start again from the one before.
    """
    jobs: Sequence[Job] = repository.list_jobs(MANY_JOBS) if job_id is None else [repository.get_job(job_id)]
    for job in jobs:
        out = Path(job.output_uri)
        newest = min(job.published_generation, newest_generation(out))
        holder = repository.find_job(output_uri=job.output_uri)
        paths = collectable(out, newest)
        if paths and holder is not None and holder.id == job.id:
            yield Garbage(job, newest, tuple(paths))
