from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from jobs.exits import UsageError
from jobs.schedules import actions
from jobs.schedules.spec import parse_schedule
from storage.errors import NoSuchSchedule, ScheduleConflict
from storage.states import RunState
from tests.unit.jobs.schedules.office import Office

FIRST, LAST = date(2026, 11, 20), date(2026, 11, 24)
FILE = """
[schedules.nightly]
cron = "{cron}"
zone = "{zone}"
input = "in/*.parquet"
dataset = "{dataset}"
model = "org/model"
"""


def write_file(office: Office, *, cron: str = "0 0 * * *", zone: str = "UTC", dataset: str = "d") -> Path:
    path = office.folder / "schedules.toml"
    path.write_text(FILE.format(cron=cron, zone=zone, dataset=dataset))
    return path


def apply(office: Office, **declared: Any) -> list[actions.Change]:
    """Write the file, apply it; what was changed."""
    prune = declared.pop("prune", False)
    wanted = actions.read_file(write_file(office, **declared))
    found = actions.changes(office.repository, wanted, prune=prune)
    for change in found:
        actions.apply(office.repository, change)
    return found


# --- a file of schedules --------------------------------------------------------------------------------------------


def test_a_file_is_applied_once_and_then_changes_nothing(noon: Office) -> None:
    [change] = apply(noon)

    schedule = noon.repository.get_schedule("nightly")
    assert (change.old, change.name) == (None, "nightly")
    assert schedule.declared.dataset == str(noon.folder / "d")
    assert schedule.cursor == "2026-11-24T12:00:00"
    assert apply(noon) == []


def test_a_changed_time_counts_from_now_on_and_a_changed_zone_goes_on_after_the_last_slot(noon: Office) -> None:
    apply(noon)
    noon.tick("2026-11-25T00:00:10")
    noon.at("2026-11-25T08:00:00")

    [change] = apply(noon, zone="Pacific/Honolulu")  # where it is still the 24th
    assert change.lines == ("- zone: UTC", "+ zone: Pacific/Honolulu")
    assert noon.repository.get_schedule("nightly").cursor == "2026-11-25T00:00:00"

    apply(noon, zone="UTC", cron="0 6 * * *")
    assert noon.repository.get_schedule("nightly").cursor == "2026-11-25T08:00:00"


def test_what_is_declared_while_an_hour_is_shown_again_does_not_fire_for_the_first_time(noon: Office) -> None:
    noon.at("2026-10-25T01:10:00")  # 02:10 in Berlin, for the second time
    table = {"cron": "*/20 * * * *", "zone": "Europe/Berlin", "input": "in/*.parquet", "dataset": "d", "model": "m"}

    actions.add(noon.repository, parse_schedule("nightly", table, noon.folder))
    noon.tick()
    assert noon.states() == {}
    noon.tick("2026-10-25T02:00:00")

    assert list(noon.states()) == ["2026-10-25T03-00"]


def test_schedules_that_the_file_does_not_name_are_removed_only_where_asked_for(noon: Office) -> None:
    noon.add("by-hand", dataset="d")

    with pytest.raises(ScheduleConflict, match="is made by schedule by-hand"):
        apply(noon)
    removed, added = apply(noon, prune=True)

    assert (removed.name, removed.new, added.name, added.old) == ("by-hand", None, "nightly", None)
    assert [schedule.name for schedule in noon.repository.schedules()] == ["nightly"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[nightly]\ncron = '1'", r"it holds nightly; write tables \[schedules.NAME\] only"),
        ("[schedules.n]\ncron = '0 0 * * *'", "schedule n: input is missing"),
        ("[schedules.n", "schedules.toml: "),
        ("[schedules]\nn = 3", "schedule n: 3 is no table"),
    ],
)
def test_a_file_that_cannot_be_honoured_is_refused_by_its_name(noon: Office, content: str, message: str) -> None:
    path = noon.folder / "schedules.toml"
    path.write_text(content)

    with pytest.raises(UsageError, match=message):
        actions.read_file(path)
    with pytest.raises(UsageError, match="cannot be read"):
        actions.read_file(noon.folder / "nowhere.toml")


# --- runs that somebody asks for ------------------------------------------------------------------------------------


def test_a_run_that_is_asked_for_is_that_of_the_newest_slot_that_has_come(noon: Office) -> None:
    noon.add()

    run = actions.run_now(noon.repository, "nightly", None, again=False)
    noon.tick()

    assert (run.label, run.state, run.cause) == ("2026-11-24", RunState.QUEUED, "manual")
    assert noon.states() == {"2026-11-24": RunState.RUNNING}
    with pytest.raises(ScheduleConflict, match="run 2026-11-24 of schedule nightly is running; it is at work"):
        actions.run_now(noon.repository, "nightly", "2026-11-24", again=True)


def test_a_run_that_has_failed_is_tried_again_and_one_that_has_succeeded_only_where_asked_for(noon: Office) -> None:
    noon.add()
    run = actions.run_now(noon.repository, "nightly", "2026-11-20", again=False)
    for attempt, (state, again) in enumerate([(RunState.FAILED, False), (RunState.SUCCEEDED, True)], start=2):
        noon.tick()
        noon.repository.fail_job(noon.job_of("2026-11-20").id, None, "x")
        epoch = noon.repository.claim_run(noon.run("2026-11-20"), "me", 60.0)
        assert epoch is not None
        noon.repository.finish_run(run.id, epoch, state)
        if again:
            with pytest.raises(ScheduleConflict, match="is succeeded; --again runs it once more"):
                actions.run_now(noon.repository, "nightly", "2026-11-20", again=False)

        assert actions.run_now(noon.repository, "nightly", "2026-11-20", again=again).attempt == attempt


def test_a_date_that_is_no_slot_and_a_schedule_that_is_paused_are_refused(noon: Office) -> None:
    noon.add()

    with pytest.raises(UsageError, match="has no slot 2026-11-24T01-00; its labels look like 2026-11-25"):
        actions.run_now(noon.repository, "nightly", "2026-11-24T01-00", again=False)
    noon.repository.pause_schedule("nightly")
    with pytest.raises(ScheduleConflict, match=r"is paused.*schedule resume nightly"):
        actions.run_now(noon.repository, "nightly", None, again=False)
    assert not actions.resume(noon.repository, "nightly").paused


def test_a_slot_that_has_run_is_not_run_again_under_another_form_of_its_label(noon: Office) -> None:
    noon.add()
    run = actions.run_now(noon.repository, "nightly", "2026-11-24", again=False)
    noon.tick()
    noon.end_job("2026-11-24")
    seen = noon.repository.get_schedule("nightly")
    noon.repository.change_schedule(seen, replace(seen.declared, cron="0 0,6 * * *"))

    plan = actions.plan_backfill(noon.repository, "nightly", LAST, LAST)
    assert [slot.label for slot in plan.chosen] == ["2026-11-24T06-00"]
    for label, attempt in (("2026-11-24T00-00", 2), ("2026-11-24", 3)):  # both name it
        again = actions.run_now(noon.repository, "nightly", label, again=False)
        assert (again.id, again.label, again.attempt) == (run.id, "2026-11-24", attempt)
        with pytest.raises(ScheduleConflict, match="run 2026-11-24 of schedule nightly is queued; it is at work"):
            actions.run_now(noon.repository, "nightly", label, again=True)
        noon.tick()
        noon.end_job("2026-11-24")

    assert list(noon.states()) == ["2026-11-24"]


def test_a_schedule_that_is_removed_while_its_run_is_asked_for_ends_that_with_an_error(
    noon: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    noon.add()
    real = noon.repository.queue_runs

    def overtaken(*arguments: Any) -> Any:
        noon.repository.remove_schedule("nightly")
        return real(*arguments)

    monkeypatch.setattr(noon.repository, "queue_runs", overtaken)

    with pytest.raises(NoSuchSchedule, match="schedule nightly was removed"):
        actions.run_now(noon.repository, "nightly", None, again=False)


# --- backfill -------------------------------------------------------------------------------------------------------


def test_a_backfill_runs_what_is_missing_up_to_now_and_its_repetition_does_nothing(noon: Office) -> None:
    noon.add()
    actions.run_now(noon.repository, "nightly", "2026-11-22", again=False)

    plan = actions.plan_backfill(noon.repository, "nightly", FIRST, date(2026, 12, 24), order="backwards")
    queued = actions.start_backfill(noon.repository, plan)
    noon.tick()

    assert (plan.in_range, len(plan.chosen)) == (5, 4)
    assert [run.label[-2:] for run in queued] == ["24", "23", "21", "20"]
    running = [label[-2:] for label, state in noon.states().items() if state == RunState.RUNNING]
    assert running == ["22", "24"]  # one of each kind
    again = actions.plan_backfill(noon.repository, "nightly", FIRST, date(2026, 12, 24), order="backwards")
    assert again.chosen == ()
    assert actions.start_backfill(noon.repository, plan) == []  # asked by two at the same time


def test_a_backfill_can_use_more_places_than_the_schedule(noon: Office) -> None:
    noon.add()

    plan = actions.plan_backfill(noon.repository, "nightly", FIRST, LAST, max_active=3)
    actions.start_backfill(noon.repository, plan)
    noon.tick()

    states = list(noon.states().values())
    assert states == [RunState.RUNNING] * 3 + [RunState.QUEUED] * 2


def test_a_backfill_of_what_is_new_has_one_run_at_work(noon: Office) -> None:
    noon.add(only_new=True, input="in/{ds}.parquet")
    for day in range(20, 25):
        noon.write(f"in/2026-11-{day}.parquet", f"story {day}")

    with pytest.raises(UsageError, match="one run must end before the next begins"):
        actions.plan_backfill(noon.repository, "nightly", FIRST, LAST, max_active=2)
    actions.start_backfill(noon.repository, actions.plan_backfill(noon.repository, "nightly", FIRST, LAST))
    noon.tick()
    noon.tick()

    assert list(noon.states().values()).count(RunState.RUNNING) == 1


def test_a_range_that_is_turned_round_and_one_input_for_all_dates_are_refused(noon: Office) -> None:
    noon.add(only_new=True)

    with pytest.raises(UsageError, match="--to is 2026-11-20, which is before --from 2026-11-24"):
        actions.plan_backfill(noon.repository, "nightly", LAST, FIRST)
    with pytest.raises(UsageError, match="its next run takes all of it"):
        actions.plan_backfill(noon.repository, "nightly", FIRST, LAST)


def test_a_range_with_too_many_dates_is_refused_before_all_are_counted(noon: Office) -> None:
    noon.add(cron="* * * * * *")

    with pytest.raises(UsageError, match="has more than 10000 dates of schedule nightly; take it in parts"):
        actions.plan_backfill(noon.repository, "nightly", date(1999, 1, 1), LAST)
