"""Laws of schedules and of the slots that they fire for, on every database."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from typing import Any, TypeVar

import pytest

from storage.errors import NoSuchSchedule, ScheduleConflict
from storage.repository import Repository
from storage.schedule_records import NewRun, NewSchedule, Run, Schedule
from storage.states import JobState, RunState
from tests.conformance.samples import LEASE, new_job

CURSOR = "2026-11-26T12:00:00"
NEXT = "2026-11-27T02:30:00"
_serial = count()
T = TypeVar("T")


def race(*tries: Callable[[], T]) -> list[T]:
    """The results of calls that are made at the same time."""
    with ThreadPoolExecutor(len(tries)) as threads:
        return [future.result() for future in [threads.submit(attempt) for attempt in tries]]


def new_schedule(**changes: Any) -> NewSchedule:
    number = next(_serial)
    values: dict[str, Any] = {
        "name": f"nightly-{number}",
        "cron": "30 2 * * *",
        "zone": "Europe/Berlin",
        "dataset": f"/data/{number}",
        "job": {"model": "org/model", "text": "naïve ✓"},
        "terms": {"gates": {"min_success_rate": 0.9}},
        "input_wait_seconds": 60.0,
    }
    return NewSchedule(**values | changes)


def scheduled(repository: Repository, **changes: Any) -> Schedule:
    return repository.add_schedule(new_schedule(**changes), CURSOR)


def new_run(label: str = "2026-11-27", *, with_job: bool = True, **changes: Any) -> NewRun:
    values: dict[str, Any] = {
        "label": label,
        "slot": f"{label}T02:30:00",
        "logical_time": 1_795_743_000.0,
        "state": RunState.RUNNING if with_job else RunState.QUEUED,
        "run_id": "a1b2" if with_job else None,
        "job": new_job() if with_job else None,
    }
    return NewRun(**values | changes)


def fired(repository: Repository, schedule: Schedule, *runs: NewRun) -> list[Run]:
    """The runs of the next slots. Fails if somebody else fired them."""
    now_is = repository.get_schedule(schedule.name)
    made = repository.fire(now_is, max(run.slot for run in runs), runs)
    assert made is not None
    return made


# --- what is declared -----------------------------------------------------------------------------------------------


def test_a_schedule_is_read_back_as_it_was_declared(repository: Repository) -> None:
    new = new_schedule(catch_up="all", catch_up_limit=7, overlap="skip", max_active=3, deadline_seconds=1.5)

    schedule = repository.add_schedule(new, CURSOR)

    assert schedule == repository.get_schedule(new.name)
    assert (schedule.declared, schedule.revision, schedule.cursor, schedule.paused) == (new, 1, CURSOR, False)
    assert schedule in repository.schedules()


def test_a_name_and_a_data_set_belong_to_one_schedule_until_it_is_removed(repository: Repository) -> None:
    first = scheduled(repository)

    with pytest.raises(ScheduleConflict, match=f"there is a schedule {first.name} already"):
        scheduled(repository, name=first.name)
    with pytest.raises(ScheduleConflict, match=f"is made by schedule {first.name}"):
        scheduled(repository, dataset=first.declared.dataset)
    repository.remove_schedule(first.name)

    second = repository.add_schedule(first.declared, CURSOR)
    assert second.id != first.id
    with pytest.raises(NoSuchSchedule, match="there is no schedule nobody"):
        repository.remove_schedule("nobody")


def test_a_change_counts_once_and_whoever_saw_an_older_one_is_refused(repository: Repository) -> None:
    first = scheduled(repository)

    changed = repository.change_schedule(first, replace(first.declared, cron="0 3 * * *"), "2026-11-27T08:00:00")

    assert (changed.declared.cron, changed.revision, changed.cursor) == ("0 3 * * *", 2, "2026-11-27T08:00:00")
    with pytest.raises(ScheduleConflict, match="changed by somebody else meanwhile"):
        repository.change_schedule(first, first.declared)
    assert repository.change_schedule(changed, first.declared).cursor == "2026-11-27T08:00:00"


# --- slots become runs ----------------------------------------------------------------------------------------------


def test_a_slot_becomes_a_run_together_with_its_job(repository: Repository) -> None:
    schedule = scheduled(repository)
    new = new_run()

    [run] = fired(repository, schedule, new)

    assert (run.state, run.label, run.attempt, run.run_id) == (RunState.RUNNING, "2026-11-27", 1, "a1b2")
    assert run.job_id is not None
    job = repository.get_job(run.job_id)
    assert (job.state, job.output_uri) == (JobState.VALIDATING, new.job.output_uri if new.job else None)
    assert repository.get_schedule(schedule.name).cursor == "2026-11-27T02:30:00"
    assert repository.active_runs(schedule.id) == [run]
    repository.check_integrity()


def test_two_ticks_of_the_same_slot_make_one_run_and_one_job(repository: Repository) -> None:
    schedule = scheduled(repository)

    made = race(
        lambda: repository.fire(schedule, NEXT, [new_run()]), lambda: repository.fire(schedule, NEXT, [new_run()])
    )

    assert sorted(result is None for result in made) == [False, True]
    assert len(repository.runs(schedule.id)) == 1
    assert len(repository.list_jobs()) == 1


def test_a_label_never_has_a_second_run_whatever_the_cursor_says(repository: Repository) -> None:
    """A changed time zone may name a slot that was fired before."""
    schedule = scheduled(repository)
    [first] = fired(repository, schedule, new_run())
    moved = repository.change_schedule(repository.get_schedule(schedule.name), schedule.declared, CURSOR)

    again = repository.fire(moved, "2026-11-28T02:30:00", [new_run(), new_run("2026-11-28", max_active=2)])

    assert again is not None
    assert [run.label for run in again] == ["2026-11-28"]
    assert [run.id for run in repository.runs(schedule.id, labels=["2026-11-27"])] == [first.id]
    assert len(repository.list_jobs()) == 2


def test_a_paused_or_removed_schedule_fires_nothing_and_resumes_after_the_pause(repository: Repository) -> None:
    schedule = scheduled(repository)
    paused = repository.pause_schedule(schedule.name)

    assert paused.paused
    assert repository.fire(paused, NEXT, [new_run()]) is None
    resumed = repository.resume_schedule(schedule.name, NEXT)
    assert (resumed.paused, resumed.cursor) == (False, NEXT)
    assert repository.resume_schedule(schedule.name, CURSOR).cursor == NEXT  # it was not paused
    repository.remove_schedule(schedule.name)
    assert repository.fire(resumed, "2026-11-28T02:30:00", [new_run("2026-11-28")]) is None
    assert repository.list_jobs() == []


def test_a_run_without_a_place_is_queued_without_its_job(repository: Repository) -> None:
    schedule = scheduled(repository)

    first, second = fired(repository, schedule, new_run(), new_run("2026-11-28"))

    assert (first.state, second.state, second.job_id) == (RunState.RUNNING, RunState.QUEUED, None)
    assert repository.start_run(second, new_job(), "c3") is None
    assert [run.label for run in repository.pending_runs()] == ["2026-11-28"]
    repository.check_integrity()


def test_a_backfill_and_the_schedules_own_runs_do_not_take_each_others_places(repository: Repository) -> None:
    schedule = scheduled(repository)
    fired(repository, schedule, new_run())

    queued = repository.queue_runs(
        schedule.id,
        [new_run(f"2026-11-0{day}", with_job=False, cause="backfill", backfill="key", rank=-day) for day in (1, 2)],
        frozenset(),
    )

    assert [run.label for run in repository.pending_runs()] == ["2026-11-02", "2026-11-01"]
    started = repository.start_run(queued[1], new_job(), "c3")
    assert started is not None
    assert started.state == RunState.RUNNING
    assert repository.start_run(queued[0], new_job(), "d4") is None


def test_a_queued_run_starts_once_whoever_tries(repository: Repository) -> None:
    schedule = scheduled(repository)
    [queued] = repository.queue_runs(schedule.id, [new_run(with_job=False)], frozenset())

    started = race(
        lambda: repository.start_run(queued, new_job(), "a"), lambda: repository.start_run(queued, new_job(), "b")
    )

    assert sorted(run is None for run in started) == [False, True]
    assert len(repository.list_jobs()) == 1


def test_a_paused_schedule_starts_nothing_that_is_queued(repository: Repository) -> None:
    schedule = scheduled(repository)
    [queued] = repository.queue_runs(schedule.id, [new_run(with_job=False)], frozenset())

    repository.pause_schedule(schedule.name)

    assert repository.pending_runs() == []
    assert repository.start_run(queued, new_job(), "a") is None


def test_the_job_of_a_run_is_offered_to_a_planner_at_once(repository: Repository) -> None:
    [run] = fired(repository, scheduled(repository), new_run())
    repository.create_job(new_job())  # its submit may be about to claim it

    assert [job.id for job in repository.unplanned_jobs(LEASE)] == [run.job_id]
    assert run.job_id is not None
    repository.claim_job(run.job_id, "planner", LEASE)
    assert repository.unplanned_jobs(LEASE) == []


def test_the_database_has_a_clock(repository: Repository) -> None:
    before = repository.clock()

    assert before > 1_700_000_000
    assert repository.clock() >= before
