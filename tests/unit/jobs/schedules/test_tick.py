from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from jobs.schedules.tick import Ticker
from jobs.submission import submission_of
from storage.states import JobState, RunState
from tests.unit.jobs.schedules.office import Office

WEDNESDAY, THURSDAY, FRIDAY = "2026-11-25", "2026-11-26", "2026-11-27"
RUNNING, QUEUED, WAITING = RunState.RUNNING, RunState.QUEUED, RunState.WAITING
WEBHOOK = {"webhook_url": "https://hooks.example/x", "webhook_secret_env": "SECRET"}


def test_a_slot_that_is_due_becomes_a_run_with_a_job_that_anybody_can_plan(office: Office) -> None:
    office.write("in/a.parquet", "one", "two")
    schedule = office.add(deadline="6h")

    office.tick(f"{WEDNESDAY}T00:00:10")

    assert office.states() == {WEDNESDAY: RUNNING}
    run, job = office.run(WEDNESDAY), office.job_of(WEDNESDAY)
    assert job.state == JobState.VALIDATING
    assert job.output_uri == f"{schedule.declared.dataset}/_runs/{WEDNESDAY}/{run.run_id}"
    assert job.tags == {"schedule": "nightly", "label": WEDNESDAY}
    assert (job.deadline - job.created_at).total_seconds() == pytest.approx(6 * 3600)
    assert submission_of(job, office.settings).spec_hash == job.spec_hash


def test_nothing_happens_before_the_time_and_nothing_twice(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add()

    for moment in (f"{WEDNESDAY}T00:00:00", f"{WEDNESDAY}T00:00:00", f"{WEDNESDAY}T23:59:59"):
        office.tick("2026-11-24T23:59:59")
        office.tick(moment)

    assert office.states() == {WEDNESDAY: RUNNING}
    assert len(office.repository.list_jobs()) == 1


def test_a_clock_that_is_set_forward_and_back_an_hour_changes_nothing(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add(max_active=9)

    for moment in ("2026-11-24T23:30:00", f"{WEDNESDAY}T00:30:00", "2026-11-24T23:30:00", f"{WEDNESDAY}T00:30:00"):
        office.tick(moment)
    office.tick(f"{THURSDAY}T00:00:00")

    assert office.states() == {WEDNESDAY: RUNNING, THURSDAY: RUNNING}


def test_queued_runs_start_in_turn_as_places_become_free(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add(catch_up="all")
    office.tick(f"{FRIDAY}T08:00:00")

    office.end_job(WEDNESDAY)
    office.tick()

    assert office.states() == {WEDNESDAY: RunState.FAILED, THURSDAY: RUNNING, FRIDAY: QUEUED}


def test_a_newer_slot_cancels_the_run_before_it_and_begins_once_that_has_ended(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add(overlap="cancel_previous")
    office.tick(f"{WEDNESDAY}T00:00:10")
    before = office.job_of(WEDNESDAY)

    office.tick(f"{THURSDAY}T00:00:10")

    assert office.repository.get_job(before.id).state == JobState.CANCELLED  # it was not planned yet
    assert office.states() == {WEDNESDAY: RUNNING, THURSDAY: QUEUED}
    office.end_job(WEDNESDAY)
    office.tick()
    assert office.states()[THURSDAY] == RUNNING


def test_a_mistake_in_one_schedule_does_not_hold_up_another(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.write("in/a.parquet", "one")
    office.add(overlap="cancel_previous")
    office.tick(f"{WEDNESDAY}T00:00:10")
    office.tick(f"{THURSDAY}T00:00:10")
    office.add("other", input="late/{ds}.parquet")
    office.tick(f"{FRIDAY}T00:00:10")
    office.write(f"late/{FRIDAY}.parquet", "two")

    def fail(*args: object) -> None:
        raise RuntimeError("no way")

    monkeypatch.setattr(Ticker, "_make_way", fail)

    office.tick()

    assert [run.state for run in office.runs("other")] == [RUNNING]


def test_an_overtaken_run_that_has_not_begun_is_cancelled(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add(overlap="cancel_previous")
    for day in (WEDNESDAY, THURSDAY, FRIDAY):
        office.tick(f"{day}T00:00:10")

    assert office.states() == {WEDNESDAY: RUNNING, THURSDAY: RunState.CANCELLED, FRIDAY: QUEUED}
    assert office.run(THURSDAY).reason == f"overtaken by {FRIDAY}"


def test_a_newer_slot_without_input_cancels_nothing(office: Office) -> None:
    office.write(f"in/{WEDNESDAY}.parquet", "one")
    office.add(overlap="cancel_previous", input="in/{ds}.parquet")
    office.tick(f"{WEDNESDAY}T00:00:10")

    office.tick(f"{THURSDAY}T00:00:10")
    assert not office.job_of(WEDNESDAY).cancel_requested

    office.write(f"in/{THURSDAY}.parquet", "one")
    office.tick(f"{THURSDAY}T01:00:00")
    assert office.job_of(WEDNESDAY).cancel_requested


def test_a_slot_that_meets_a_run_at_work_is_skipped_if_the_schedule_says_so(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add(overlap="skip")

    office.tick(f"{WEDNESDAY}T00:00:10")
    office.tick(f"{THURSDAY}T00:00:10")

    assert office.states() == {WEDNESDAY: RUNNING, THURSDAY: RunState.SKIPPED}


# --- input ----------------------------------------------------------------------------------------------------------


def test_a_run_waits_for_its_input_and_begins_when_it_is_there(office: Office) -> None:
    office.add(input="in/{ds}/*.parquet", input_wait="2h")

    office.tick(f"{WEDNESDAY}T00:00:10")
    waiting = office.run(WEDNESDAY)
    office.write(f"in/{WEDNESDAY}/a.parquet", "one")
    office.tick(f"{WEDNESDAY}T01:00:00")

    assert waiting.state == WAITING
    assert "matches no file" in str(waiting.reason)
    assert office.states() == {WEDNESDAY: RUNNING}
    assert office.job_of(WEDNESDAY).input_uri.endswith(f"in/{WEDNESDAY}/*.parquet")


@pytest.mark.parametrize("rows", [None, ()], ids=["missing", "empty"])
def test_without_input_until_the_limit_a_night_has_no_input_and_has_not_failed(
    office: Office, rows: tuple[str, ...] | None
) -> None:
    office.add(input="in/{ds}.parquet", input_wait="2h", terms=WEBHOOK)
    if rows is not None:
        office.write(f"in/{WEDNESDAY}.parquet", *rows)

    for moment in ("T00:00:10", "T01:59:00", "T02:01:00"):
        office.tick(f"{WEDNESDAY}{moment}")

    run = office.run(WEDNESDAY)
    assert (run.state, run.notice, run.job_id) == (RunState.NO_INPUT, "missed", None)
    assert f"{WEDNESDAY}.parquet" in str(run.reason)


def test_an_input_that_is_still_written_is_waited_for_and_one_that_stays_damaged_fails(office: Office) -> None:
    office.add(input="in/{ds}.parquet", input_wait="2h")
    path = office.write(f"in/{WEDNESDAY}.parquet", "one")
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])

    office.tick(f"{WEDNESDAY}T00:00:10")
    assert office.states() == {WEDNESDAY: WAITING}
    office.tick(f"{WEDNESDAY}T03:00:00")

    assert office.states() == {WEDNESDAY: RunState.FAILED}
    assert "cut off or damaged" in str(office.run(WEDNESDAY).reason)


def test_an_input_that_waiting_cannot_mend_fails_at_once_and_the_next_schedule_goes_on(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add("a-broken", job={"prompt_column": "nothing"}, terms=WEBHOOK)
    office.add("b-good")

    office.tick(f"{WEDNESDAY}T00:00:10")

    broken = office.run(WEDNESDAY, "a-broken")
    assert (broken.state, broken.notice) == (RunState.FAILED, "failure")
    assert "nothing" in str(broken.reason)
    assert office.states("b-good") == {WEDNESDAY: RUNNING}


def test_every_date_has_a_seed_of_its_own(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add(max_active=2)

    for day in (WEDNESDAY, THURSDAY):
        office.tick(f"{day}T00:00:10")

    seeds = [office.job_of(day).spec["seed"] for day in (WEDNESDAY, THURSDAY)]
    assert len(set(seeds)) == 2


# --- pause, change, remove ------------------------------------------------------------------------------------------


def test_nights_of_a_pause_are_left_out(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add()
    office.repository.pause_schedule("nightly")

    office.tick(f"{THURSDAY}T08:00:00")
    office.repository.resume_schedule("nightly", f"{THURSDAY}T08:00:00")
    office.tick(f"{FRIDAY}T00:00:10")

    assert office.states() == {FRIDAY: RUNNING}


def test_a_changed_zone_does_not_run_a_date_again(office: Office) -> None:
    office.write("in/a.parquet", "one")
    schedule = office.add(zone="Europe/Berlin", cron="30 2 * * *")
    office.tick(f"{WEDNESDAY}T01:30:10")
    seen = office.repository.get_schedule("nightly")

    office.repository.change_schedule(seen, replace(schedule.declared, zone="America/New_York"))
    office.tick(f"{WEDNESDAY}T07:30:10")

    assert office.states() == {WEDNESDAY: RUNNING}
    assert len(office.repository.list_jobs()) == 1


def test_the_data_set_of_a_schedule_is_a_folder_below_the_file_that_declares_it(office: Office, tmp_path: Path) -> None:
    assert office.add().declared.dataset == str(tmp_path / "data-nightly")
