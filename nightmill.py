"""Nightmill's public Python API, and `python -m nightmill`.

    import nightmill

    job = nightmill.submit("prompts.parquet", output="OUT", model="org/model", sampling={"max_tokens": 64})
    nightmill.wait(job)
    for row in nightmill.results(job):
        print(row["output_text"])

Broker and database are named by NIGHTMILL_BROKER_URL and NIGHTMILL_DATABASE_URL; without them everything runs on this
machine, below NIGHTMILL_HOME, while `wait` does. Errors are those of `storage.errors`, `jobs.exits` and `jobs.models`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["cancel", "open_dataset", "pause", "results", "resume", "retry", "stats", "status", "submit", "wait"]


def submit(
    inputs: str | Sequence[str],
    *,
    output: str | Path,
    model: str,
    sampling: Mapping[str, Any] | None = None,
    **options: Any,
) -> int:
    """Plan and queue a job, and return its id. The same call again attaches to the same job.

    `sampling` has the names of the sampling columns (`max_tokens`, `temperature`, `stop`, `n`, ...), `options` those of
    `jobs.options.SubmitOptions`. Raises ValueError for an option that cannot be honoured.
    """
    from jobs import client
    from jobs.options import SubmitOptions
    from jobs.planning import silent
    from jobs.sampling import Sampling, check_overrides

    wanted = SubmitOptions(
        inputs=(inputs,) if isinstance(inputs, str) else tuple(inputs),
        output=Path(output),
        model=model,
        sampling=Sampling().overridden(check_overrides(sampling or {})),
        **options,
    )
    place = client.place_for({})
    with place.repository() as repository:
        return int(client.submit(wanted, place, repository, silent).job.id)


def wait(job: int, timeout: float | None = None) -> dict[str, Any]:
    """Wait until the job has ended, and return its status. In embedded mode this is what runs it.

    Raises NoSuchJob, TimedOut after `timeout` seconds, OwnerMissing.
    """
    from jobs import client, progress
    from jobs.place import find
    from storage.records import JobId

    place = find()
    with place.repository() as repository:
        found = repository.get_job(JobId(job))
        with client.at_work(place, found) as check:
            progress.follow(
                repository,
                found.id,
                poll_seconds=place.settings.watch_seconds,
                timeout=timeout,
                tell=lambda moment: None,
                check=check,
            )
        return client.status(place, repository, job)


def status(job: int) -> dict[str, Any]:
    """Where the job stands, as `nightmill status --json` prints it. Raises NoSuchJob."""
    from jobs import client
    from jobs.place import find

    place = find()
    with place.repository() as repository:
        return client.status(place, repository, job)


def stats(job: int, generation: int | None = None) -> dict[str, Any]:
    """What the job cost and what the cache saved, as `nightmill stats --json` prints it; of the rows that ran for one
    generation of its results, or of all. Raises NoSuchJob."""
    from jobs import client
    from jobs.place import find

    with find().repository() as repository:
        return client.stats(repository, job, generation)


def pause(job: int) -> dict[str, Any]:
    """Stop working on the job for now; its status. What is done is kept. Raises NoSuchJob, JobConflict when it is
    neither queued nor in progress."""
    return _steer(job, "pause_job")


def resume(job: int) -> dict[str, Any]:
    """Let a paused job go on; its status. Raises NoSuchJob, JobConflict when it is not paused."""
    return _steer(job, "resume_job")


def cancel(job: int, *, now: bool = False) -> dict[str, Any]:
    """Cancel the job; its status. Rows that are done are published; rows in an engine are finished first, with `now`
    they are aborted. Raises NoSuchJob."""
    return _steer(job, "request_cancel", at_once=now)


def retry(
    job: int,
    *,
    status: str | Sequence[str] = (),
    finish_reason: str | Sequence[str] = (),
    sampling: Mapping[str, Any] | None = None,
) -> int:
    """Run rows of a published job again; how many. Then `wait` for it as after a submit.

    Rows with one of these statuses (errored, expired, canceled) or finish reasons run again, with these sampling
    options. Raises NoSuchJob, JobConflict when the job is open or was never published; ValueError when nothing is
    chosen or an option cannot be honoured.
    """
    from jobs import client
    from jobs.planning import silent
    from jobs.retrying import Choice
    from jobs.sampling import check_overrides

    choice = Choice(
        statuses=frozenset((status,) if isinstance(status, str) else status),
        finish_reasons=frozenset((finish_reason,) if isinstance(finish_reason, str) else finish_reason),
        options=check_overrides(sampling or {}),
    )
    place = client.place_for({})
    with place.repository() as repository:
        plan = client.retry(job, choice, place, repository, silent).plan
    return 0 if plan is None else plan.record.num_rows


def _steer(job: int, move: str, **how: Any) -> dict[str, Any]:
    from jobs import client
    from jobs.place import find
    from storage.records import JobId

    place = find()
    with place.repository() as repository:
        getattr(repository, move)(JobId(job), **how)
        return client.status(place, repository, job)


def results(job: int, *, errors_only: bool = False) -> Iterator[dict[str, Any]]:
    """The published rows in input order, one dictionary each. Raises NoSuchJob when there are none yet."""
    from jobs.place import find
    from jobs.results import Results
    from storage.records import JobId

    with find().repository() as repository:
        found = Results.of(repository.get_job(JobId(job)), errors_only=errors_only)
    return found.rows()


def open_dataset(folder: str | Path) -> Any:
    """All current rows of a data set as one `pyarrow.dataset.Dataset`, the label of each row in the column `dt`.

    What was opened stays as it is, however the data set moves on. Raises NoSuchDataset, FileDamaged,
    FileUnreadable.
    """
    from storage.dataset.reading import open_dataset

    return open_dataset(Path(folder))


if __name__ == "__main__":
    from jobs.cli import main

    main()
