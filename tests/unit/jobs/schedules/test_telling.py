from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from jobs.datasets.terms import DatasetTerms
from jobs.schedules.settling import Settler
from jobs.schedules.telling import LONGEST_PAUSE, Teller
from storage.states import RunState
from tests.unit.jobs.schedules.office import Office

DAY, NEXT = "2026-11-25", "2026-11-26"
WEBHOOK = {"webhook_url": "https://hooks.example/x", "webhook_secret_env": "SECRET"}


@dataclass
class Hook:
    """A webhook that takes what comes, or says why not."""

    why_not: str | None = None
    sent: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def send(self, terms: DatasetTerms, event: str, body: Mapping[str, Any]) -> str | None:
        assert terms.webhook_url == WEBHOOK["webhook_url"]
        self.sent.append((event, body))
        return self.why_not


@pytest.fixture
def office(office: Office) -> Office:
    """Nobody has to wait for the next try."""
    office.settings = office.settings.model_copy(update={"notice_pause_seconds": -1.0, "lease_seconds": -1.0})
    office.write("in/a.parquet", "one")
    return office


def tell(office: Office, hook: Hook, times: int = 1) -> None:
    for _ in range(times):
        Teller(office.settings, office.repository, send=hook.send).work()


def missed(office: Office) -> None:
    office.add(catch_up="none", terms=WEBHOOK)
    office.tick(f"{DAY}T08:00:00")


def failed(office: Office) -> None:
    """A run whose job fails, settled."""
    office.add(terms=WEBHOOK)
    office.tick(f"{DAY}T00:00:10")
    office.repository.fail_job(office.job_of(DAY).id, None, "its model is gone")
    assert Settler(office.settings, office.repository, "settler").work() == 1


def test_a_missed_night_is_told_once_it_can_be(office: Office) -> None:
    missed(office)
    hook = Hook("HTTP 503")

    tell(office, hook)
    run = office.run(DAY)
    assert (run.notice_tries, run.notice_error, run.noticed) == (1, "HTTP 503", False)
    hook.why_not = None
    tell(office, hook, times=3)

    assert [event for event, _ in hook.sent] == ["missed", "missed"]
    assert hook.sent[0] == hook.sent[1]
    body = hook.sent[0][1]
    assert (body["schedule"], body["label"], body["state"]) == ("nightly", DAY, "missed")
    run = office.run(DAY)
    assert (run.notice_tries, run.notice_error, run.noticed) == (2, None, True)


def test_the_end_of_a_run_is_told_after_it_was_settled_and_again_until_it_is_taken(office: Office) -> None:
    failed(office)
    hook = Hook("HTTP 503")

    tell(office, hook, times=2)
    hook.why_not = None
    tell(office, hook, times=2)

    assert [event for event, _ in hook.sent] == ["failure"] * 3
    body = hook.sent[0][1]
    assert (body["label"], body["state"], body["reason"]) == (DAY, "failed", "job 1 is failed: its model is gone")
    assert (body["dataset"], body["rows"], body["gates"]) == (str(office.folder / "data-nightly"), 0, [])


def test_a_webhook_that_takes_nothing_is_given_up(office: Office) -> None:
    office.settings = office.settings.model_copy(update={"notice_tries": 2})
    missed(office)
    hook = Hook("HTTP 404")

    tell(office, hook, times=4)

    assert len(hook.sent) == 2
    run = office.run(DAY)
    assert (run.notice, run.notice_tries, run.notice_error, run.noticed) == ("missed", 2, "HTTP 404", False)


def test_the_pauses_grow_and_last_about_a_day_together(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.settings = type(office.settings)(home=office.folder)
    missed(office)
    pauses: list[float] = []
    real = office.repository.note_notice

    def note(run: Any, *, error: str | None, delay_seconds: float = 0.0) -> None:
        pauses.append(delay_seconds)
        real(run, error=error, delay_seconds=-1.0)

    monkeypatch.setattr(office.repository, "note_notice", note)

    tell(office, Hook("HTTP 503"), times=office.settings.notice_tries)

    assert pauses == sorted(pauses)
    assert (pauses[:3], pauses[-1]) == ([30.0, 60.0, 120.0], LONGEST_PAUSE)
    assert 20 * 3600 < sum(pauses[:-1]) < 28 * 3600


def test_two_that_tell_at_the_same_time_send_one(office: Office) -> None:
    office.settings = office.settings.model_copy(update={"lease_seconds": 60.0})
    missed(office)
    hook = Hook()
    other = Teller(office.settings, office.repository, send=hook.send)

    def while_it_sends(terms: DatasetTerms, event: str, body: Mapping[str, Any]) -> str | None:
        other.work()
        return hook.send(terms, event, body)

    Teller(office.settings, office.repository, send=while_it_sends).work()

    assert len(hook.sent) == 1


def test_whoever_dies_after_sending_leaves_the_same_delivery_to_the_next(office: Office) -> None:
    failed(office)
    hook = Hook()

    def dies(*arguments: Any) -> str | None:
        hook.send(*arguments)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Teller(office.settings, office.repository, send=dies).work()
    tell(office, hook, times=2)

    assert len(hook.sent) == 2
    assert hook.sent[0] == hook.sent[1]


def test_a_mistake_in_one_notice_holds_no_other_one_up(office: Office) -> None:
    failed(office)
    office.add("other", catch_up="none", terms=WEBHOOK)
    office.tick(f"{NEXT}T08:00:00")
    office.repository.pause_schedule("nightly")
    hook = Hook()

    def send(terms: DatasetTerms, event: str, body: Mapping[str, Any]) -> str | None:
        if event == "failure":
            raise KeyError("oops")
        return hook.send(terms, event, body)

    Teller(office.settings, office.repository, send=send).work()

    assert [(event, body["schedule"]) for event, body in hook.sent] == [("missed", "other")]


def test_terms_that_cannot_be_honoured_any_more_are_said_and_nothing_is_sent(office: Office) -> None:
    missed(office)
    seen = office.repository.get_schedule("nightly")
    office.repository.change_schedule(seen, replace(seen.declared, terms={**seen.declared.terms, "keep_days": -1}))
    hook = Hook()

    tell(office, hook)

    assert hook.sent == []
    assert "terms cannot be honoured: keep_days is -1" in str(office.run(DAY).notice_error)
    assert office.run(DAY).state == RunState.MISSED
