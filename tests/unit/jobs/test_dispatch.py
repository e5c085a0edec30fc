from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from jobs.dispatch import MIN_WINDOW, STALE_FACTOR, BrokerDown, Dispatcher
from storage.records import Hint, JobId, ModelRef, ShardId, WorkerRecord

MODEL = ModelRef(source="m", revision=None, dtype="float32", key="k")
HINT = Hint(job_id=JobId(1), shard_id=ShardId(2), dispatch_seq=1, model_key="k", model_source="m")


@dataclass
class FakeSql:
    live: int = 0
    windows: list[tuple[str | None, int, float]] = field(default_factory=list)

    def workers(self, max_age_seconds: float | None = None) -> list[WorkerRecord]:
        return [
            WorkerRecord(
                id=f"w{i}", boot_id="b", model_key="k", model_source="m", device="cpu", state="ready", heartbeat_age=0
            )
            for i in range(self.live)
        ]

    def waiting_models(self) -> list[tuple[ModelRef, int]]:
        return [(MODEL, 5)]

    def dispatch(self, model_key: str | None, window: int, stale_seconds: float) -> list[Hint]:
        self.windows.append((model_key, window, stale_seconds))
        return [HINT]


def dispatcher(sql: FakeSql, sent: list[Hint], queued: int | None = 0) -> Dispatcher:
    return Dispatcher(
        repository=sql,  # type: ignore[arg-type]
        publish=sent.append,
        queue_length=lambda key: queued,
        slots=16,
        stale_seconds=120.0,
        worker_stale_seconds=30.0,
    )


def test_the_window_grows_with_the_live_workers_of_the_model_and_is_never_empty() -> None:
    sql, sent = FakeSql(live=3), []
    assert dispatcher(sql, sent).fill() == 1
    sql.live = 0
    dispatcher(sql, sent).fill()

    assert [window for _, window, _ in sql.windows] == [2 * 16 * 3, MIN_WINDOW]
    assert sent == [HINT, HINT]


@pytest.mark.parametrize(("queued", "stale"), [(0, 120.0), (4, 120.0 * STALE_FACTOR), (None, 120.0 * STALE_FACTOR)])
def test_only_an_empty_queue_makes_hints_stale_early(queued: int | None, stale: float) -> None:
    sql: FakeSql = FakeSql()

    dispatcher(sql, [], queued).fill()

    assert sql.windows[0][2] == stale


def test_a_new_broker_gets_every_hint_again() -> None:
    sql = FakeSql()

    dispatcher(sql, [], 4).fill(stale_seconds=0.0)

    assert sql.windows[0][2] == 0.0


def test_a_dead_broker_is_told_to_the_caller() -> None:
    def down(hint: Hint) -> None:
        raise BrokerDown("no broker")

    broken = Dispatcher(FakeSql(), down, lambda key: None, 16, 120.0, 30.0)  # type: ignore[arg-type]

    with pytest.raises(BrokerDown):
        broken.fill()
