"""What becomes of a run whose job has ended: its gates decide about the data set."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs.datasets.settle import Settled, settle_run
from jobs.datasets.terms import DatasetTerms
from jobs.retry import is_full_disk
from jobs.settings import Settings
from storage import failpoints
from storage.errors import DatabaseDown, Fenced, StorageError
from storage.records import Job
from storage.repository import Repository
from storage.schedule_records import Notice, Run, RunRowId
from storage.states import JOB_FINAL, JobState, RunState

log = logging.getLogger(__name__)

Settle = Callable[[Job, str, str, Path, DatasetTerms], Settled]


@dataclass(frozen=True, slots=True)
class _End:
    state: RunState
    reason: str | None
    gates: tuple[dict[str, Any], ...]
    generation: int  # of the job's output that was settled


@dataclass(frozen=True, slots=True)
class _NotYet:
    """The world was in the way, and may not be in so many seconds. `counts`: as one of the tries."""

    seconds: float = 0.0
    counts: bool = True


class Settler:
    """Any number may work at once: a run is settled under its lease."""

    def __init__(self, settings: Settings, repository: Repository, owner: str, *, settle: Settle | None = None) -> None:
        self._settings = settings
        self._repository = repository
        self._owner = owner
        self._settle = partial(settle_run, settings=settings) if settle is None else settle

    def work(self) -> int:
        """Settle what has ended; the number of runs that have ended by this call. The trouble of one run holds no other
        one up. Raises DatabaseDown."""
        return sum(self._settle_one(run) for run in self._repository.unsettled_runs())

    def _settle_one(self, run: Run) -> bool:
        epoch = None
        try:
            epoch = self._repository.claim_run(run, self._owner, self._settings.lease_seconds)
            if epoch is None:
                return False
            end = self._end_of(run, epoch)
            if isinstance(end, _NotYet):
                self._repository.release_run(run.id, epoch, delay_seconds=end.seconds, counts=end.counts)
                return False
            failpoints.reach("settle.before_sql")
            self._repository.finish_run(
                run.id,
                epoch,
                end.state,
                gates=end.gates,
                reason=end.reason,
                notice=self._notice(run, end),
                generation=end.generation,
            )
            return True
        except DatabaseDown:
            raise
        except Fenced as error:
            log.warning("settling stopped schedule=%s label=%s error=%s", run.schedule, run.label, error)
        except Exception:  # a mistake of ours in one run
            log.exception("settling stopped schedule=%s label=%s", run.schedule, run.label)
            if epoch is not None:
                with suppress(StorageError):  # else its lease runs out, and until then holds its schedule up
                    self._repository.release_run(run.id, epoch, delay_seconds=self._settings.lease_seconds)
        return False

    def _end_of(self, run: Run, epoch: int) -> _End | _NotYet:
        """Raises DatabaseDown."""
        most, job = self._settings.max_shard_attempts, None
        try:
            assert run.job_id is not None, f"run {run.label} of schedule {run.schedule} is at work without a job"
            job = self._repository.get_job(run.job_id)
            if job.state not in JOB_FINAL:
                return _NotYet(counts=False)  # rows of it run again since a moment ago
            if run.settle_tries >= most:
                return _failed(job, f"whoever settled it was gone before the end, {run.settle_tries} times")
            with self._renewing(run.id, epoch):
                return self._settled(run, job)
        except DatabaseDown:
            raise
        except (OSError, StorageError) as error:
            log.warning("settling failed schedule=%s label=%s error=%s", run.schedule, run.label, error)
            if is_full_disk(error):
                return _NotYet(self._settings.full_disk_seconds, counts=False)  # nobody's fault
            if run.settle_tries + 1 < most:
                return _NotYet(self._settings.lease_seconds)
            return _failed(job, f"its data set could not take it in: {error}")
        except Exception as error:  # a mistake of ours in one run
            log.exception("settling failed schedule=%s label=%s", run.schedule, run.label)
            return _failed(job, f"it could not be settled: {error!r}")

    def _settled(self, run: Run, job: Job) -> _End:
        dataset = Path(job.output_uri).parents[2]  # DATASET/_runs/LABEL/RUN; by now the schedule may name another
        terms = DatasetTerms.from_dict(self._repository.schedule_of(run).declared.terms)
        settled = self._settle(job, run.label, str(run.run_id), dataset, terms)
        gates = tuple(gate.as_dict() for gate in settled.gates)
        return _End(_state(job, settled), settled.reason or None, gates, job.published_generation)

    def _notice(self, run: Run, end: _End) -> Notice | None:
        """Nobody is to be told without a webhook."""
        if not self._repository.schedule_of(run).declared.terms.get("webhook_url"):
            return None
        return "success" if end.state == RunState.SUCCEEDED else "failure"

    @contextmanager
    def _renewing(self, run: RunRowId, epoch: int) -> Iterator[None]:
        """Keep the right to settle while gates read a large partition."""
        done = threading.Event()

        def renew() -> None:
            while not done.wait(self._settings.heartbeat_seconds):
                with suppress(StorageError):  # then the lease runs out, and finishing says so
                    self._repository.renew_run(run, epoch, self._settings.lease_seconds)

        renewals = threading.Thread(target=renew, name="settle-lease", daemon=True)
        renewals.start()
        try:
            yield
        finally:
            done.set()
            renewals.join()


def _failed(job: Job | None, reason: str) -> _End:
    return _End(RunState.FAILED, reason, (), 0 if job is None else job.published_generation)


def _state(job: Job, settled: Settled) -> RunState:
    if job.state == JobState.CANCELLED:
        return RunState.CANCELLED
    if job.state != JobState.COMPLETED:
        return RunState.FAILED
    if settled.published:
        return RunState.SUCCEEDED
    return RunState.GATES_FAILED if settled.gates else RunState.FAILED
