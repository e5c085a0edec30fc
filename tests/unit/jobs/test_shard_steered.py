"""What becomes of an attempt whose job is paused or cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from jobs.outcome import Ending
from storage.records import JobId
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
