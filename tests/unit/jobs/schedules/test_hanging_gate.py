from __future__ import annotations

import threading
from typing import Any

import pytest

from jobs.datasets.settle import Settled
from jobs.schedules.keeper import ScheduleKeeper
from storage.states import RunState
from tests.unit.jobs.schedules.office import Office

DAY = "2026-11-25"


def test_ticks_go_on_while_a_run_takes_long_to_settle(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.write("in/a.parquet", "one")
    office.add()
    office.tick(f"{DAY}T00:00:10")
    office.repository.fail_job(office.job_of(DAY).id, None, "x")
    hangs, go, ticked, now = threading.Event(), threading.Event(), threading.Event(), [0.0]

    def settle(*_: Any, **__: Any) -> Settled:
        hangs.set()
        assert go.wait(60.0)
        return Settled(published=False, gates=(), reason="its check was stopped")

    monkeypatch.setattr("jobs.schedules.settling.settle_run", settle)
    keeper = ScheduleKeeper(office.settings, office.repository, "me", monotonic=lambda: now[0])
    monkeypatch.setattr(keeper, "_tick", ticked.set)

    keeper.look()
    assert hangs.wait(60.0)
    ticked.clear()
    now[0] = 100.0
    keeper.look()
    went_on = ticked.wait(60.0)
    go.set()
    keeper.wait()

    assert went_on
    assert office.run(DAY).state == RunState.FAILED
