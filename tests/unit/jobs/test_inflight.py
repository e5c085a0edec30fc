"""Rows that our own code cannot deal with end alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from engine.request import Completion
from jobs import inflight as module
from jobs.inflight import InFlight
from jobs.junctions import RowPlan
from jobs.rows import RowMaker
from storage.states import RowStatus
from tests.unit.jobs.test_rows import Letters, plan_row

ROWS = [replace(plan_row(), row_index=index) for index in range(3)]


@pytest.fixture
def maker() -> RowMaker:
    return RowMaker(
        decoder=Letters(),  # type: ignore[arg-type]
        eos_token_ids=frozenset({99}),
        shard_id=7,
        attempt=2,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def in_flight(maker: RowMaker, sealed: set[tuple[int, int]] = frozenset()) -> InFlight:  # type: ignore[assignment]
    return InFlight(maker, None, sealed, prefix="7.1", job="1")  # type: ignore[arg-type]


def done(request_id: str, sample: int) -> Completion:
    return Completion(request_id=request_id, job="1", sample_index=sample, token_ids=(0, 1), finish_reason="length")


def test_a_row_whose_request_cannot_be_made_is_an_error_for_each_open_sample_and_the_others_go_on(
    maker: RowMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(row: object, plan: object, request_id: str, *_: object) -> str:
        if request_id == "7.1.1":
            raise KeyError("no such stop")
        return request_id

    monkeypatch.setattr(module, "make_request", make)
    rows = in_flight(maker, {(1, 0)})

    pulled = list(rows.requests((row, RowPlan()) for row in ROWS))
    [failed] = rows.finish([])

    assert pulled == ["7.1.0", "7.1.2"]
    assert (failed.row_index, failed.sample_index, failed.status) == (1, 1, RowStatus.ERRORED)
    assert failed.error_code == "internal"
    assert "no such stop" in (failed.error_message or "")


def test_a_result_that_cannot_be_written_down_is_an_error_of_its_row_alone(
    maker: RowMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "make_request", lambda row, plan, request_id, *_: request_id)
    texts = iter([ValueError("not a text"), None])

    def finish(*_: object) -> tuple[str, None]:
        if (error := next(texts)) is not None:
            raise error
        return "ab", None

    monkeypatch.setattr("jobs.rows.finish_text", finish)
    rows = in_flight(maker)
    first, second, _ = rows.requests((row, RowPlan()) for row in ROWS)

    bad, good = rows.finish([done(str(first), 0), done(str(second), 0)])

    assert (bad.error_code, good.output_text) == ("internal", "ab")
    assert "not a text" in (bad.error_message or "")
