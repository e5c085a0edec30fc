"""One look at all schedules: slots that are due become runs, runs that have their turn and their input get a job.

Any number of processes may tick at once, at any time: what a tick decides, one transaction makes true or not at all.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from jobs.schedules.cron import Cron, Slot
from jobs.schedules.policy import Decision, decide
from jobs.schedules.prepare import NotYet, Prepared, Ready, Refused, prepare
from jobs.schedules.template import slot_of
from jobs.settings import Settings
from storage.errors import DatabaseDown
from storage.repository import Repository
from storage.schedule_records import NewRun, NewSchedule, Notice, Run, Schedule, ScheduleId
from storage.states import RunState

log = logging.getLogger(__name__)

Prepare = Callable[[NewSchedule, Slot, Settings], Prepared]


class Ticker:
    """`clock`: seconds since 1970; the database's unless a test says otherwise."""

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        *,
        clock: Callable[[], float] | None = None,
        prepare: Prepare = prepare,
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._clock = repository.clock if clock is None else clock
        self._prepare = prepare

    def tick(self) -> None:
        """A schedule that cannot be served does not keep the others waiting. Raises DatabaseDown."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        schedules = {schedule.id: schedule for schedule in self._repository.schedules() if not schedule.paused}
        for schedule in schedules.values():
            try:
                self._fire(schedule, now)
            except DatabaseDown:
                raise
            except Exception:  # a mistake of ours in one schedule
                log.exception("tick failed schedule=%s", schedule.name)
        self._start_pending(schedules, now)

    # --- slots become runs ----------------------------------------------------------------------------------
    def _fire(self, schedule: Schedule, now: datetime) -> None:
        declared = schedule.declared
        cron = Cron.parse(declared.cron, declared.zone)
        most = max(self._settings.schedule_slots, declared.catch_up_limit if declared.catch_up == "all" else 1)
        due = cron.due(schedule.cursor, now, most + 1)
        if not due:
            return
        is_too_many = len(due) > most
        due = due[-most:]
        own = [run for run in self._repository.pending_runs() if run.schedule_id == schedule.id]
        active = [run for run in self._repository.active_runs(schedule.id) if run.backfill is None]
        queued = [run for run in own if run.backfill is None and run.state == RunState.QUEUED]
        grace = timedelta(seconds=self._settings.schedule_grace_seconds)
        decisions = decide(due, declared, active=len(active) + len(queued), now=now, grace=grace)
        last_missed = next((each for each in reversed(decisions) if each.state == RunState.MISSED), None)
        runs = [self._new_run(declared, decision, decision is last_missed, now) for decision in decisions]
        left_out = due[0].name if is_too_many else None
        if self._repository.fire(schedule, due[-1].name, runs, left_out_before=left_out) is None:
            log.info("another tick was faster, or the schedule was changed schedule=%s", schedule.name)
        elif is_too_many:
            log.warning("slots left out schedule=%s after=%s before=%s", schedule.name, schedule.cursor, left_out)

    def _new_run(self, declared: NewSchedule, decision: Decision, tells: bool, now: datetime) -> NewRun:
        slot = decision.slot
        if decision.state == RunState.RUNNING:
            prepared = self._prepare(declared, slot, self._settings)
            if isinstance(prepared, Ready):
                return replace(_new(declared, slot, RunState.RUNNING), run_id=prepared.run_id, job=prepared.job)
            state, reason, notice, wait_until = self._without_job(declared, prepared, now, None)
            return replace(_new(declared, slot, state), reason=reason, notice=notice, wait_until=wait_until)
        notice = _notice(declared, "missed") if tells else None
        return replace(_new(declared, slot, decision.state), reason=decision.reason, notice=notice)

    # --- runs get their job ---------------------------------------------------------------------------------
    def _start_pending(self, schedules: dict[ScheduleId, Schedule], now: datetime) -> None:
        pending = [run for run in self._repository.pending_runs() if run.schedule_id in schedules]
        for schedule_id in dict.fromkeys(run.schedule_id for run in pending):
            schedule = schedules[schedule_id]
            own = [run for run in pending if run.schedule_id == schedule_id]
            active = self._repository.active_runs(schedule_id)
            if schedule.declared.overlap == "cancel_previous":
                try:
                    own = self._make_way(schedule, own, active)
                except DatabaseDown:
                    raise
                except Exception:  # a mistake of ours in one schedule
                    log.exception("start failed schedule=%s", schedule.name)
                    continue
            taken = Counter(run.backfill is None or schedule.declared.only_new for run in active)
            for run in own:
                kind = run.backfill is None or schedule.declared.only_new
                if taken[kind] >= (1 if schedule.declared.only_new else run.max_active):
                    continue
                try:
                    taken[kind] += self._start(schedule, run, now)
                except DatabaseDown:
                    raise
                except Exception:  # a mistake of ours in one run
                    log.exception("start failed schedule=%s label=%s", run.schedule, run.label)

    def _start(self, schedule: Schedule, run: Run, now: datetime) -> bool:
        """True when the run has a job now."""
        slot = slot_of(run)
        prepared = self._prepare(schedule.declared, slot, self._settings)
        if isinstance(prepared, Ready):
            revision = schedule.revision
            return self._repository.start_run(run, prepared.job, prepared.run_id, revision=revision) is not None
        waits_until = run.wait_until if run.state == RunState.WAITING else None
        state, reason, notice, wait_until = self._without_job(schedule.declared, prepared, now, waits_until)
        self._repository.move_pending_run(
            run, state, reason=reason, notice=notice, wait_until=wait_until, revision=schedule.revision
        )
        return False

    def _without_job(
        self, declared: NewSchedule, prepared: NotYet | Refused, now: datetime, waits_until: float | None
    ) -> tuple[RunState, str, Notice | None, float | None]:
        """State, reason, notice and time limit of a run whose job cannot be made now."""
        if isinstance(prepared, Refused):
            return RunState.FAILED, prepared.reason, _notice(declared, "failure"), None
        limit = now.timestamp() + declared.input_wait_seconds if waits_until is None else waits_until
        if now.timestamp() < limit:
            return RunState.WAITING, prepared.reason, None, limit
        if prepared.absent:
            return RunState.NO_INPUT, prepared.reason, _notice(declared, "missed"), limit
        return RunState.FAILED, prepared.reason, _notice(declared, "failure"), limit

    def _make_way(self, schedule: Schedule, pending: list[Run], active: list[Run]) -> list[Run]:
        """Cancel what the newest slot overtakes, once its input is there; what is left to start. Can be repeated."""
        own = [run for run in pending if run.cause == "schedule"]
        newest = max(own, key=lambda run: run.slot, default=None)
        if newest is None:
            return pending
        at_work = [run for run in active if run.backfill is None and run.slot < newest.slot]
        overtaken = [run for run in own if run.slot < newest.slot]
        if not (at_work or overtaken):
            return pending
        if not isinstance(self._prepare(schedule.declared, slot_of(newest), self._settings), Ready):
            return pending
        for run in at_work:
            if run.job_id is not None:
                self._repository.request_cancel(run.job_id)
        for run in overtaken:
            self._repository.move_pending_run(run, RunState.CANCELLED, reason=f"overtaken by {newest.label}")
        return [run for run in pending if run not in overtaken]


def _new(declared: NewSchedule, slot: Slot, state: RunState) -> NewRun:
    return NewRun(
        label=slot.label,
        slot=slot.name,
        logical_time=slot.instant.timestamp(),
        state=state,
        max_active=declared.max_active,
    )


def _notice(declared: NewSchedule, notice: Notice) -> Notice | None:
    """Nobody is to be told without a webhook."""
    return notice if declared.terms.get("webhook_url") else None
