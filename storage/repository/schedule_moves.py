"""The part of the repository that deals with schedules and their runs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from storage import failpoints
from storage import schedule_tables as tables
from storage.database import Database, now
from storage.errors import NoSuchSchedule, ScheduleConflict
from storage.records import NewJob
from storage.repository import notices, runs, schedules, settling
from storage.schedule_records import NewRun, NewSchedule, Notice, Run, RunRowId, Schedule, ScheduleId
from storage.states import RunState

_log = logging.getLogger(__name__)

ALL_RUNS = 1_000_000


class ScheduleMoves:
    """Each call is one transaction."""

    _db: Database

    def clock(self) -> float:
        """Seconds since 1970 on the database's clock."""
        with self._db.read() as conn:
            return float(conn.scalar(select(now())) or 0.0)

    # --- schedules ------------------------------------------------------------------------------------------
    def add_schedule(self, new: NewSchedule, cursor: str) -> Schedule:
        """It fires for slots after `cursor`. Raises ScheduleConflict when its name or data set is taken."""
        try:
            with self._db.write() as conn:
                schedule = schedules.add(conn, new, cursor)
        except IntegrityError as error:
            raise self._taken(new) from error
        _log.info("schedule_added schedule=%s", new.name)
        return schedule

    def change_schedule(self, schedule: Schedule, new: NewSchedule, cursor: str | None = None) -> Schedule:
        """Replace what is declared; `cursor`: it fires for slots after this one. Raises ScheduleConflict when somebody
        else changed or removed it, or the data set is taken."""
        try:
            with self._db.write() as conn:
                changed = schedules.change(conn, schedule.id, schedule.revision, new, cursor)
        except IntegrityError as error:
            raise self._taken(new) from error
        _log.info("schedule_changed schedule=%s revision=%d", new.name, changed.revision)
        return changed

    def pause_schedule(self, name: str) -> Schedule:
        """Nothing of it comes due or starts; runs at work go on. Raises NoSuchSchedule."""
        with self._db.write() as conn:
            return schedules.pause(conn, name)

    def resume_schedule(self, name: str, cursor: str) -> Schedule:
        """Slots up to `cursor` are passed over; of a schedule that is not paused nothing changes. Raises
        NoSuchSchedule."""
        with self._db.write() as conn:
            return schedules.resume(conn, name, cursor)

    def remove_schedule(self, name: str) -> Schedule:
        """Its name and data set are free; its history stays. Raises NoSuchSchedule."""
        with self._db.write() as conn:
            schedule = schedules.remove(conn, name)
        _log.info("schedule_removed schedule=%s", name)
        return schedule

    def schedules(self) -> list[Schedule]:
        """All that were not removed, by name."""
        with self._db.read() as conn:
            return schedules.every(conn)

    def has_schedules(self) -> bool:
        """Were there ever any? Also those that were removed may have runs at work."""
        with self._db.read() as conn:
            return conn.execute(select(tables.schedules.c.id).limit(1)).one_or_none() is not None

    def find_schedule(self, name: str) -> Schedule | None:
        with self._db.read() as conn:
            return schedules.find(conn, name)

    def get_schedule(self, name: str) -> Schedule:
        """Raises NoSuchSchedule."""
        found = self.find_schedule(name)
        if found is None:
            raise NoSuchSchedule(f"there is no schedule {name}; `nightmill schedule list` shows all")
        return found

    def schedule_of(self, run: Run) -> Schedule:
        """Also when it was removed."""
        with self._db.read() as conn:
            return schedules.get(conn, run.schedule_id)

    # --- runs -----------------------------------------------------------------------------------------------
    def fire(
        self, schedule: Schedule, cursor: str, new: Sequence[NewRun], *, left_out_before: str | None = None
    ) -> list[Run] | None:
        """Record what becomes of the slots up to `cursor`, each run together with its job. Labels and slots that have a
        run already are left out; a job that finds no place (max_active) is not made, and its run is queued.
        `left_out_before`: slots before this one came due as well, and are in no run.

        None, and nothing has changed, when somebody else was faster, or changed or paused the schedule."""
        failpoints.reach("fire.before_sql")
        with self._db.write() as conn:
            if not schedules.turn_to(conn, schedule, cursor, left_out_before):
                return None
            made = runs.add(conn, schedule.id, runs.labelled(conn, schedule.id, new))
        failpoints.reach("fire.after_sql")
        for run in made:
            _log.info("run_made schedule=%s label=%s state=%s job=%s", run.schedule, run.label, run.state, run.job_id)
        return made

    def queue_runs(self, schedule_id: ScheduleId, new: Sequence[NewRun], states: Collection[RunState]) -> list[Run]:
        """Queue labels without a run, and again those whose run has ended in one of `states`; the runs that are queued
        by this call. Raises NoSuchSchedule, ScheduleConflict when the schedule was removed or paused meanwhile."""
        queued = []
        with self._db.write() as conn:
            schedules.going(conn, schedule_id)
            for run in runs.labelled(conn, schedule_id, new):
                made = runs.add(conn, schedule_id, [run])
                again = None if made else runs.queue_again(conn, schedule_id, run, states)
                queued += made if again is None else [again]
        return queued

    def start_run(self, run: Run, job: NewJob, run_id: str, *, revision: int | None = None) -> Run | None:
        """queued, waiting -> running, together with its job. None: no place is free, or somebody else moved it, or the
        schedule is no longer of the `revision` that the job was made from."""
        with self._db.write() as conn:
            started = runs.start(conn, run, job, run_id, revision)
        if started is not None:
            _log.info("run_started schedule=%s label=%s job=%s", run.schedule, run.label, started.job_id)
        return started

    def move_pending_run(
        self,
        run: Run,
        state: RunState,
        *,
        reason: str | None = None,
        notice: Notice | None = None,
        wait_until: float | None = None,
        revision: int | None = None,
    ) -> bool:
        """queued, waiting -> any state without a job. False when somebody else moved it, or the schedule is not of this
        `revision` any more."""
        with self._db.write() as conn:
            moved = runs.move_pending(conn, run, state, reason, notice, wait_until, revision)
        if moved and state != run.state:
            _log.info("run_moved schedule=%s label=%s state=%s reason=%s", run.schedule, run.label, state, reason)
        return moved

    def claim_run(self, run: Run, owner: str, lease_seconds: float) -> int | None:
        """Take the right to settle a run whose job has ended: running -> settling; its new epoch. None: somebody
        settles it, or another run of this schedule."""
        with self._db.write() as conn:
            return settling.claim(conn, run, owner, lease_seconds)

    def renew_run(self, run: RunRowId, epoch: int, lease_seconds: float) -> None:
        """Raises Fenced."""
        with self._db.write() as conn:
            settling.renew(conn, run, epoch, lease_seconds)

    def finish_run(
        self,
        run: RunRowId,
        epoch: int,
        state: RunState,
        *,
        gates: Sequence[dict[str, Any]] = (),
        reason: str | None = None,
        notice: Notice | None = None,
        generation: int = 0,
    ) -> Run:
        """settling -> its end. `generation`: of the job's output that was settled; once there is a newer one the run
        is settled again. Raises Fenced."""
        with self._db.write() as conn:
            ended = settling.finish(conn, run, epoch, state, gates, reason, notice, generation)
        _log.info("run_ended schedule=%s label=%s state=%s reason=%s", ended.schedule, ended.label, state, reason)
        return ended

    def release_run(self, run: RunRowId, epoch: int, *, delay_seconds: float = 0.0, counts: bool = True) -> None:
        """settling -> running: it could not be settled, and others go on; not before `delay_seconds` it is tried again.
        `counts`: among the tries of this attempt. Raises Fenced."""
        with self._db.write() as conn:
            settling.release(conn, run, epoch, delay_seconds, counts)

    def get_run(self, run: RunRowId) -> Run:
        with self._db.read() as conn:
            return runs.get(conn, run)

    def runs(
        self, schedule_id: ScheduleId, *, labels: Collection[str] | None = None, limit: int = ALL_RUNS
    ) -> list[Run]:
        """Newest label first."""
        with self._db.read() as conn:
            return runs.of_schedule(conn, schedule_id, labels, limit)

    def run_of_slot(self, schedule_id: ScheduleId, slot: str) -> Run | None:
        """Whatever its label."""
        with self._db.read() as conn:
            return runs.of_slot(conn, schedule_id, slot)

    def pending_runs(self) -> list[Run]:
        """Runs that have no job yet, of schedules that are not paused, in the order in which they start."""
        with self._db.read() as conn:
            return runs.pending(conn)

    def active_runs(self, schedule_id: ScheduleId) -> list[Run]:
        """Runs at work, oldest slot first."""
        with self._db.read() as conn:
            return runs.active(conn, schedule_id)

    def unsettled_runs(self) -> list[Run]:
        """Runs whose job has ended and that nobody settles now."""
        with self._db.read() as conn:
            return settling.unsettled(conn)

    # --- notices --------------------------------------------------------------------------------------------
    def unsent_notices(self, most_tries: int) -> list[Run]:
        """Runs of which a webhook is still to be told, and whose turn has come; those first that were tried least."""
        with self._db.read() as conn:
            return notices.unsent(conn, most_tries)

    def claim_notice(self, run: Run, lease_seconds: float) -> bool:
        """Take the next try at a notice: nobody else tries for so long. False: somebody else has it, or there is no
        more to tell."""
        with self._db.write() as conn:
            return notices.claim(conn, run, lease_seconds)

    def note_notice(self, run: Run, *, error: str | None, delay_seconds: float = 0.0) -> None:
        """It was taken, or not, and then it is not offered before `delay_seconds` again."""
        with self._db.write() as conn:
            notices.note(conn, run, error, delay_seconds)

    def _taken(self, new: NewSchedule) -> ScheduleConflict:
        if self.find_schedule(new.name) is not None:
            return ScheduleConflict(f"there is a schedule {new.name} already; choose another name or remove it")
        owner = next((other.name for other in self.schedules() if other.declared.dataset == new.dataset), "?")
        return ScheduleConflict(
            f"the data set {new.dataset} is made by schedule {owner}; every schedule needs one of its own"
        )
