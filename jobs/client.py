"""What the commands do, without printing: ask about jobs, and wait for them. `nightmill` exports it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobs import report
from jobs.place import Place
from storage.records import Job, JobId, Shard
from storage.states import ShardState

if TYPE_CHECKING:
    from storage.repository import Repository


def status(place: Place, repository: Repository, job_id: int) -> dict[str, Any]:
    """Where a job stands: the object of `nightmill status --json`. Raises NoSuchJob."""
    job = repository.get_job(JobId(job_id))
    shards = repository.shards(job.id)
    sealed = {
        shard.id: sum(segment.rows for segment in repository.segments(shard.id))
        for shard in shards
        if shard.state == ShardState.RUNNING
    }
    absent = missing(place, repository, job, shards)
    return report.status(job, shards, sealed, repository.job_stats(job.id), absent)


def stats(repository: Repository, job_id: int) -> dict[str, Any]:
    """What a job cost and what the cache saved: the object of `nightmill stats --json`. Raises NoSuchJob."""
    job = repository.get_job(JobId(job_id))
    return report.statistics(job, repository.job_stats(job.id))


def missing(place: Place, repository: Repository, job: Job, shards: Sequence[Shard]) -> list[str]:
    """Which processes have to be started before the job can go on; each line has the command."""
    settings = place.settings
    live = repository.workers(max_age_seconds=settings.worker_stale_seconds)
    return report.missing_processes(job, shards, live, embedded=settings.embedded, owner_alive=place.owner_alive)
