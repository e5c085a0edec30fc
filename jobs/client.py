"""What the commands do, without printing: submit a job, ask about it, wait for it. `nightmill` exports it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jobs import report
from jobs.exits import Interrupted, TimedOut, UsageError
from jobs.place import Place, find
from storage.records import Job, JobId, Shard
from storage.states import ShardState

if TYPE_CHECKING:
    from jobs.options import SubmitOptions
    from jobs.planning import Progress
    from jobs.retrying import Choice, Retried
    from jobs.submit import Submitted
    from storage.repository import Repository

Check = Callable[[], None]


def place_for(engine: Mapping[str, Any]) -> Place:
    """Where to submit. `engine` replaces settings of the engine, which only the process that starts it can honour.

    Raises UsageError when the engine is started by somebody else: then the options would do nothing.
    """
    place = find(engine)
    if engine and not place.settings.embedded:
        raise UsageError(
            f"{_names(engine)} belong to the worker: give them to `nightmill worker`, as NIGHTMILL_ variables"
        )
    if engine and place.owner_alive:
        raise UsageError(
            f"{_names(engine)} cannot be honoured: an engine runs in {place.settings.home} already, for another submit;"
            " wait for its end, or set NIGHTMILL_HOME to another directory"
        )
    return place


def submit(options: SubmitOptions, place: Place, repository: Repository, progress: Progress) -> Submitted:
    """Plan and queue the job. In real mode its first hints are sent; in embedded mode the owner sends them.

    Raises InputInvalid, ModelUnknown, OutputConflict, JobConflict, BrokerDown, DatabaseDown.
    """
    from jobs.submit import submit as plan_and_queue

    if place.settings.embedded:
        return plan_and_queue(options, repository, place.settings, progress)
    from jobs.monitor.broker import require_broker
    from jobs.reconciler import make_dispatcher

    require_broker(place.broker_url)  # before anything is written
    submitted = plan_and_queue(options, repository, place.settings, progress)
    make_dispatcher(place.settings, repository, place.broker_url).fill()
    return submitted


def retry(job_id: int, choice: Choice, place: Place, repository: Repository, progress: Progress) -> Retried:
    """Queue rows of a published job again; hints are sent as after a submit. Raises as `jobs.retrying.retry`, and
    BrokerDown."""
    from jobs.retrying import retry as plan_and_queue

    if place.settings.embedded:
        return plan_and_queue(JobId(job_id), choice, repository, place.settings, progress)
    from jobs.monitor.broker import require_broker
    from jobs.reconciler import make_dispatcher

    require_broker(place.broker_url)  # before anything is written
    retried = plan_and_queue(JobId(job_id), choice, repository, place.settings, progress)
    make_dispatcher(place.settings, repository, place.broker_url).fill()
    return retried


@contextmanager
def at_work(place: Place, job: Job) -> Iterator[Check]:
    """In embedded mode broker, reconciler and worker run while the block does; in real mode others see to that.

    Yields a check to be called now and then. Raises OwnerMissing; Interrupted on Ctrl-C, with what goes on.
    """
    if not place.settings.embedded:
        try:
            yield lambda: None
        except KeyboardInterrupt:
            follow = f"nightmill watch {job.id}` follows it, `nightmill cancel {job.id}` ends it"
            raise Interrupted(f"job {job.id} goes on: `{follow}") from None
        return
    from jobs.embedded import running

    try:
        with running(place.settings) as check:
            yield check
    except KeyboardInterrupt:
        raise Interrupted(f"job {job.id} is interrupted; {_what_now(place, job)}") from None
    except TimedOut:
        raise TimedOut(f"job {job.id} has not ended in time; {_what_now(place, job)}") from None


def _what_now(place: Place, job: Job) -> str:
    """What becomes of a job of embedded mode when this command leaves."""
    if place.owner_alive:
        return f"another submit keeps it running: `nightmill watch {job.id}` follows it"
    again = "the same command" if job.generation == 1 else "the command that submitted it"
    return f"its finished rows are kept, and {again} resumes it"


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


def stats(repository: Repository, job_id: int, generation: int | None = None) -> dict[str, Any]:
    """What a job cost and what the cache saved, in one generation of its results or in all: the object of
    `nightmill stats --json`. Raises NoSuchJob; UsageError for a generation that there is none of."""
    job = repository.get_job(JobId(job_id))
    if generation is not None and not 1 <= generation <= job.generation:
        raise UsageError(f"job {job_id} has no generation {generation}; the newest is {job.generation}")
    return report.statistics(job, repository.job_stats(job.id, generation), generation)


def missing(place: Place, repository: Repository, job: Job, shards: Sequence[Shard]) -> list[str]:
    """Which processes have to be started before the job can go on; each line has the command."""
    return report.missing_processes(job, shards, staff(place, repository))


def staff(place: Place, repository: Repository) -> report.Staff:
    """Who is there to run jobs now."""
    heard_of = repository.workers(max_age_seconds=place.settings.worker_stale_seconds)
    return report.Staff.of(heard_of, embedded=place.settings.embedded, owner=place.owner_alive)


def _names(engine: Mapping[str, Any]) -> str:
    """The engine options as the user wrote them."""
    flags = {name: name.replace("_", "-") for name in engine}
    return ", ".join(f"--no-{flag}" if engine[name] is False else f"--{flag}" for name, flag in flags.items())
