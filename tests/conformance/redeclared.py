"""Laws of schedules that are changed, paused or removed while runs come due, on every database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storage.errors import NoSuchSchedule, ScheduleConflict
from storage.repository import Repository
from storage.states import RunState
from tests.conformance.samples import LEASE, new_job
from tests.conformance.schedules import CURSOR, NEXT, fired, new_run, scheduled


def test_a_slot_has_one_run_whatever_the_form_of_labels(repository: Repository) -> None:
    """A changed expression may call 2026-11-27 what was 2026-11-27T02-30 before."""
    schedule = scheduled(repository)
    [first] = fired(repository, schedule, new_run())
    other = replace(new_run(), label="2026-11-27T02-30")
    moved = repository.change_schedule(repository.get_schedule(schedule.name), schedule.declared, CURSOR)

    assert repository.fire(moved, NEXT, [other]) == []
    assert repository.queue_runs(schedule.id, [replace(other, job=None, run_id=None)], frozenset()) == []

    assert [run.label for run in repository.runs(schedule.id)] == ["2026-11-27"]
    assert repository.run_of_slot(schedule.id, NEXT) == first
    assert repository.run_of_slot(schedule.id, CURSOR) is None
    assert len(repository.list_jobs()) == 1
    repository.fail_job(first.job_id, None, "x") if first.job_id else None
    assert repository.claim_run(first, "settler", LEASE) == 1
    repository.finish_run(first.id, 1, RunState.FAILED)
    [again] = repository.queue_runs(schedule.id, [replace(other, job=None, run_id=None)], {RunState.FAILED})
    assert (again.id, again.label, again.attempt) == (first.id, "2026-11-27", 2)


def test_a_tick_that_saw_an_older_declaration_changes_nothing(repository: Repository) -> None:
    seen = scheduled(repository)
    [queued] = repository.queue_runs(seen.id, [new_run("2026-11-20", with_job=False)], frozenset())
    changed = repository.change_schedule(seen, replace(seen.declared, job={"model": "org/other"}))
    assert changed.cursor == seen.cursor

    assert repository.fire(seen, NEXT, [new_run()]) is None
    assert repository.start_run(queued, new_job(), "a", revision=seen.revision) is None
    assert not repository.move_pending_run(queued, RunState.NO_INPUT, revision=seen.revision)

    assert repository.list_jobs() == []
    assert repository.move_pending_run(queued, RunState.WAITING, revision=changed.revision)
    assert repository.start_run(repository.get_run(queued.id), new_job(), "a", revision=changed.revision) is not None
    assert repository.fire(changed, NEXT, [new_run(max_active=2)]) is not None


def test_nothing_is_queued_for_a_schedule_that_was_removed_or_paused_meanwhile(repository: Repository) -> None:
    removed, paused = scheduled(repository), scheduled(repository)
    repository.remove_schedule(removed.name)
    repository.pause_schedule(paused.name)

    with pytest.raises(NoSuchSchedule, match=f"schedule {removed.name} was removed"):
        repository.queue_runs(removed.id, [new_run(with_job=False)], frozenset())
    with pytest.raises(ScheduleConflict, match=f"schedule {paused.name} is paused"):
        repository.queue_runs(paused.id, [new_run(with_job=False)], frozenset())

    assert repository.runs(removed.id) == repository.runs(paused.id) == []


def test_slots_that_were_too_many_are_remembered(repository: Repository) -> None:
    schedule = scheduled(repository)
    assert schedule.left_out is None

    repository.fire(schedule, "2026-11-30T02:30:00", [new_run("2026-11-30")], left_out_before="2026-11-30T02:30:00")

    found = repository.get_schedule(schedule.name)
    assert found.left_out == (CURSOR, "2026-11-30T02:30:00")
    repository.fire(found, "2026-12-01T02:30:00", [])
    assert repository.get_schedule(schedule.name).left_out == found.left_out


def test_what_is_new_in_a_data_set_is_made_by_one_run_at_a_time_also_after_its_schedule_was_removed(
    repository: Repository,
) -> None:
    first = scheduled(repository, only_new=True)
    [at_work] = fired(repository, first, new_run())
    repository.remove_schedule(first.name)
    second = repository.add_schedule(first.declared, CURSOR)

    [waits] = fired(repository, second, new_run("2026-11-28"))

    assert (at_work.state, waits.state, waits.job_id) == (RunState.RUNNING, RunState.QUEUED, None)
    assert repository.start_run(waits, new_job(), "a") is None
    assert at_work.job_id is not None
    repository.fail_job(at_work.job_id, None, "x")
    assert repository.claim_run(at_work, "settler", LEASE) == 1
    repository.finish_run(at_work.id, 1, RunState.FAILED)
    assert repository.start_run(waits, new_job(), "a") is not None
