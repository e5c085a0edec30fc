"""What becomes of an attempt whose job is paused or cancelled, or whose shard another has."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from jobs.outcome import Ending
from storage.records import JobId, ShardId
from storage.repository import Repository
from storage.states import ShardState
from tests.unit.jobs.bench import ROWS, Bench, beating, wait_for_rows


@pytest.mark.parametrize(
    ("ask", "ending", "state"),
    [
        (lambda repository, job_id: repository.pause_job(job_id), Ending.PAUSED, ShardState.READY),
        (
            lambda repository, job_id: repository.request_cancel(job_id, at_once=True),
            Ending.CANCELLED,
            ShardState.CANCELLED,
        ),
    ],
    ids=["pause", "cancel-now"],
)
def test_a_pause_and_an_impatient_cancel_abort_the_rows_in_the_engine(
    bench: Bench, ask: Callable[[Repository, JobId], object], ending: Ending, state: ShardState
) -> None:
    bench.take_engine(rows_per_second=40)
    asker = threading.Thread(target=lambda: (wait_for_rows(bench, 4), ask(bench.tools.repository, bench.job.id)))
    asker.start()

    with beating(bench):
        outcome = bench.run()

    asker.join()
    assert outcome.ending is ending
    assert (bench.shard.state, bench.shard.preemptions, bench.shard.crashes) == (state, 1, 0)
    assert 4 <= bench.sealed() == outcome.stats.rows < ROWS


def test_a_patient_cancel_finishes_what_the_engine_has_begun_and_begins_nothing(bench: Bench) -> None:
    bench.take_engine(rows_per_second=40, max_sequences=6)
    begun = bench.watch_requests()
    asked_at: list[int] = []

    def cancel() -> None:
        wait_for_rows(bench, 4)
        bench.tools.repository.request_cancel(bench.job.id)
        bench.tools.leases.beat()
        asked_at.append(len(begun))

    asker = threading.Thread(target=cancel)
    asker.start()

    outcome = bench.run()

    asker.join()
    assert outcome.ending is Ending.CANCELLED
    assert bench.shard.state is ShardState.CANCELLED
    assert bench.sealed() == len(begun) + 1 < ROWS  # and the row that submit refused
    assert len(begun) - asked_at[0] <= 1  # one may have been on its way


def test_an_attempt_that_hears_that_its_shard_is_another_s_ends_at_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.take_engine(rows_per_second=40)
    bench.tools = replace(bench.tools, settings=bench.tools.settings.model_copy(update={"segment_rows": 1000}))
    repository, owed, owe = bench.tools.repository, list[int](), bench.tools.gate.owe

    def lose(shard_id: ShardId, sequences: int) -> None:
        if len(owed) == 1:
            repository.release_shard(shard_id, 1, reason="its lease ran out", preempted=True)
        owed.append(sequences)
        owe(shard_id, sequences)

    monkeypatch.setattr(bench.tools.gate, "owe", lose)

    with beating(bench):
        outcome = bench.run()

    assert outcome.ending is Ending.FENCED
    assert owed[-1] > 0  # the engine was at work, and nothing had to be sealed
