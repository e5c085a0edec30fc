"""What becomes of a run whose job has ended: its gates decide about the data set; and who has to be told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs.datasets import webhook
from jobs.datasets.settle import Settled, settle_run
from jobs.datasets.terms import DatasetTerms
from jobs.datasets.webhook import Event
from jobs.settings import Settings
from storage import failpoints
from storage.errors import DatabaseDown, Fenced, StorageError
from storage.records import Job
from storage.repository import Repository
from storage.schedule_records import Run, RunRowId
from storage.states import JOB_FINAL, JobState, RunState

log = logging.getLogger(__name__)

Settle = Callable[[Job, str, str, Path, DatasetTerms], Settled]
Send = Callable[[DatasetTerms, Event, Mapping[str, Any]], bool]
LONGEST_PAUSE = 3600.0  # seconds between two tries of a webhook


@dataclass(frozen=True, slots=True)
class _End:
    state: RunState
    reason: str | None = None
    gates: tuple[dict[str, Any], ...] = ()
    untold: bool = False  # settling did not come so far as to tell the webhook


class Settler:
    """Any number may work at once: a run is settled under its lease."""

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        owner: str,
        *,
        settle: Settle | None = None,
        send: Send | None = None,
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._owner = owner
        self._settle = partial(settle_run, settings=settings) if settle is None else settle
        self._send = partial(webhook.send, settings=settings) if send is None else send

    def work(self) -> int:
        """Settle what has ended, tell what has to be told; the number of runs that have ended by this call."""
        ended = sum(self._settle_one(run) for run in self._repository.unsettled_runs())
        for run in self._repository.unsent_notices(self._settings.notice_tries):
            self._tell(run)
        return ended

    def _settle_one(self, run: Run) -> bool:
        epoch = self._repository.claim_run(run, self._owner, self._settings.lease_seconds)
        if epoch is None or run.job_id is None:
            return False
        try:
            job = self._repository.get_job(run.job_id)
            with self._renewing(run.id, epoch):
                # Rows of it may run again since a moment ago: then it is settled when they have ended.
                end = self._end_of(run, job, epoch) if job.state in JOB_FINAL else None
            if end is None:
                return False  # tried again when the lease has run out
            failpoints.reach("settle.before_sql")
            self._repository.finish_run(
                run.id,
                epoch,
                end.state,
                gates=end.gates,
                reason=end.reason,
                notice="failure" if end.untold and self._terms(run).webhook_url else None,
                generation=job.published_generation,
            )
            return True
        except (Fenced, DatabaseDown) as error:
            log.warning("settling stopped schedule=%s label=%s error=%s", run.schedule, run.label, error)
            return False

    def _end_of(self, run: Run, job: Job, epoch: int) -> _End | None:
        """None: the world was in the way, and may not be next time. Raises DatabaseDown."""
        dataset = Path(job.output_uri).parents[2]  # DATASET/_runs/LABEL/RUN; by now the schedule may name another
        try:
            settled = self._settle(job, run.label, str(run.run_id), dataset, self._terms(run))
        except (OSError, StorageError) as error:
            log.warning("settling failed schedule=%s label=%s error=%s", run.schedule, run.label, error)
            if epoch < self._settings.max_shard_attempts:
                return None
            return _End(RunState.FAILED, f"its data set could not take it in: {error}", untold=True)
        except Exception as error:  # a mistake of ours in one run
            log.exception("settling failed schedule=%s label=%s", run.schedule, run.label)
            return _End(RunState.FAILED, f"it could not be settled: {error!r}", untold=True)
        gates = tuple(gate.as_dict() for gate in settled.gates)
        return _End(_state(job, settled), settled.reason or None, gates)

    def _tell(self, run: Run) -> None:
        assert run.notice is not None, f"run {run.label} of schedule {run.schedule} has nothing to tell"
        body = {
            "schedule": run.schedule,
            "label": run.label,
            "run": run.run_id,
            "job": run.job_id,
            "state": run.state.value,
            "reason": run.reason,
            "logical_time": run.logical_time.isoformat(),
        }
        pause = min(LONGEST_PAUSE, self._settings.notice_pause_seconds * 2**run.notice_tries)
        if self._send(self._terms(run), run.notice, body):
            self._repository.note_notice(run, error=None)
        else:
            log.warning("webhook not told schedule=%s label=%s tries=%d", run.schedule, run.label, run.notice_tries + 1)
            self._repository.note_notice(run, error="it was not taken; the log says why", delay_seconds=pause)

    def _terms(self, run: Run) -> DatasetTerms:
        return DatasetTerms.from_dict(self._repository.schedule_of(run).declared.terms)

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


def _state(job: Job, settled: Settled) -> RunState:
    if job.state == JobState.CANCELLED:
        return RunState.CANCELLED
    if job.state != JobState.COMPLETED:
        return RunState.FAILED
    if settled.published:
        return RunState.SUCCEEDED
    return RunState.GATES_FAILED if settled.gates else RunState.FAILED
