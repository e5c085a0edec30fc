"""Tells the webhooks of schedules what became of their runs, again and again until it is taken or a day has passed.

What is due, how often it was tried and why it was not taken stands in SQL (`schedule_runs`: notice, notice_tries,
notice_after, notice_error, noticed_at), so that whoever looks next goes on. What was taken is never sent again; a
process that dies between the two leaves the same delivery to the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jobs.datasets import webhook
from jobs.datasets.terms import DatasetTerms
from jobs.datasets.webhook import Event
from jobs.settings import Settings
from storage import failpoints
from storage.errors import DatabaseDown
from storage.repository import Repository
from storage.schedule_records import Run, Schedule

log = logging.getLogger(__name__)

Send = Callable[[DatasetTerms, Event, Mapping[str, Any]], str | None]
LONGEST_PAUSE = 3600.0  # seconds between two tries


class Teller:
    """Any number may work at once: each try is claimed."""

    def __init__(self, settings: Settings, repository: Repository, *, send: Send | None = None) -> None:
        self._settings = settings
        self._repository = repository
        self._send = partial(webhook.send, settings=settings) if send is None else send

    def work(self) -> None:
        """One try for each notice whose turn has come. Raises DatabaseDown."""
        for run in self._repository.unsent_notices(self._settings.notice_tries):
            try:
                self._tell(run)
            except DatabaseDown:
                raise
            except Exception:  # a mistake of ours in one notice; it is tried again like any other
                log.exception("telling failed schedule=%s label=%s", run.schedule, run.label)

    def _tell(self, run: Run) -> None:
        assert run.notice is not None, f"run {run.label} of schedule {run.schedule} has nothing to tell"
        pause = min(LONGEST_PAUSE, self._settings.notice_pause_seconds * 2.0**run.notice_tries)
        if not self._repository.claim_notice(run, max(pause, self._settings.lease_seconds)):
            return
        schedule = self._repository.schedule_of(run)
        try:
            terms = DatasetTerms.from_dict(schedule.declared.terms)
        except ValueError as error:  # an older version allowed it
            why: str | None = f"the schedule's terms cannot be honoured: {error}"
        else:
            why = self._send(terms, run.notice, self._body(run, schedule))
            failpoints.reach("tell.after_webhook")
        self._repository.note_notice(run, error=why, delay_seconds=pause)
        if why is not None:
            log.warning(
                "webhook not told schedule=%s label=%s try=%d of=%d error=%s",
                run.schedule,
                run.label,
                run.notice_tries + 1,
                self._settings.notice_tries,
                why,
            )

    def _body(self, run: Run, schedule: Schedule) -> dict[str, Any]:
        """From what does not change any more: each try is the same delivery."""
        body: dict[str, Any] = {
            "schedule": run.schedule,
            "dataset": schedule.declared.dataset,
            "label": run.label,
            "run": run.run_id,
            "job": run.job_id,
            "attempt": run.attempt,
            "state": run.state.value,
            "reason": run.reason,
            "logical_time": run.logical_time.isoformat(),
            "ended_at": run.finished_at.isoformat() if run.finished_at else None,
        }
        if run.job_id is None:
            return body
        job = self._repository.get_job(run.job_id)
        body["dataset"] = str(Path(job.output_uri).parents[2])  # by now the schedule may name another
        return body | {"rows": job.rows_total, "succeeded": job.rows_succeeded, "gates": run.gates or []}
