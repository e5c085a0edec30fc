"""A webhook that is away for a while is told of a night when it is back, once; SQL says what happened."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobs.schedules.telling import Teller
from storage.states import RunState
from tests.integration.mill import Mill, make_mill
from tests.integration.test_webhook import receiving

pytestmark = pytest.mark.integration
AT_ONCE = {"webhook_tries": 1, "notice_pause_seconds": 0.0, "lease_seconds": 0.0}


def told(mill: Mill) -> list[tuple[Any, ...]]:
    query = "SELECT label, notice, notice_tries, notice_error, noticed_at IS NOT NULL FROM schedule_runs ORDER BY label"
    with closing(sqlite3.connect(mill.folder / "test.db")) as connection:
        return connection.execute(query).fetchall()


def test_a_receiver_that_is_away_is_told_when_it_is_back_and_never_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "s")
    with make_mill(tmp_path) as mill, receiving(503, 404, 200) as receiver:
        hook = {"webhook_url": receiver.url, "webhook_secret_env": "HOOK_SECRET"}
        mill.declare(terms={"min_success_rate": 0.9, **hook})
        teller = Teller(mill.settings.model_copy(update=AT_ONCE), mill.repository)

        run = mill.night(1, prompt=["one", "two"])
        seen = []
        for _ in range(4):
            teller.work()
            seen.append(told(mill))

    assert run.state == RunState.SUCCEEDED
    assert [row for [row] in seen] == [
        ("2026-11-01", "success", 1, "HTTP 503", 0),
        ("2026-11-01", "success", 2, "HTTP 404", 0),
        ("2026-11-01", "success", 3, None, 1),
        ("2026-11-01", "success", 3, None, 1),
    ]
    assert len(receiver.bodies) == 3
    assert len({headers["Nightmill-Delivery"] for headers in receiver.headers}) == 1
    body = json.loads(receiver.bodies[0])
    assert (body["event"], body["label"], body["rows"], body["succeeded"]) == ("success", "2026-11-01", 2, 2)
    assert [gate["name"] for gate in body["gates"]] == ["columns", "min_success_rate"]
