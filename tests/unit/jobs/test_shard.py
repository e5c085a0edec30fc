"""The story of one attempt, told in this process: real files, a real SQLite database, a fake engine."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import shard as story
from jobs.outcome import Ending, ShardFailed
from jobs.publishing import publish_job
from storage import layout
from storage.errors import DatabaseDown
from storage.parquet.writer import SegmentWriter
from storage.records import ShardId
from storage.states import ShardState
from tests.unit.jobs.bench import ROWS, Bench, wait_for_rows


def test_a_shard_is_claimed_generated_sealed_and_committed(bench: Bench) -> None:
    outcome = bench.run()

    assert outcome.ending is Ending.DONE
    assert outcome.stats.rows == ROWS
    assert bench.shard.state is ShardState.DONE
    assert bench.shard.out_rows == ROWS
    job = bench.tools.repository.get_job(bench.job.id)
    assert (job.rows_succeeded, job.rows_errored) == (ROWS - 1, 1)
    assert bench.tools.gate.in_flight == 0


def test_a_late_hint_and_a_hint_for_a_shard_in_flight_are_dropped(bench: Bench) -> None:
    bench.tools.gate.enter(bench.shard.id)
    assert bench.run().ending is Ending.DUPLICATE
    bench.tools.gate.leave(bench.shard.id)
    bench.run()

    assert bench.run().ending is Ending.DROPPED
    assert bench.run(ShardId(999)).ending is Ending.DROPPED


def test_a_stop_seals_what_is_finished_and_the_next_attempt_makes_only_the_rest(bench: Bench) -> None:
    bench.take_engine(rows_per_second=40)
    stopper = threading.Thread(target=lambda: (wait_for_rows(bench, 4), bench.tools.stopping.set()))
    stopper.start()

    first = bench.run()

    stopper.join()
    assert first.ending is Ending.PREEMPTED
    assert (bench.shard.state, bench.shard.preemptions, bench.shard.crashes) == (ShardState.READY, 1, 0)
    assert 4 <= bench.sealed() == first.stats.rows < ROWS
    bench.take_engine()

    second = bench.run()

    assert second.ending is Ending.DONE
    assert second.stats.rows == ROWS - first.stats.rows
    assert bench.shard.out_rows == ROWS


def test_requests_tell_where_they_part_and_a_second_attempt_plans_what_is_left(bench: Bench) -> None:
    bench.take_engine(rows_per_second=40)
    first = bench.watch_requests()
    stopper = threading.Thread(target=lambda: (wait_for_rows(bench, 4), bench.tools.stopping.set()))
    stopper.start()
    bench.run()
    stopper.join()
    sealed = bench.sealed()
    bench.take_engine()
    second = bench.watch_requests()

    bench.run()

    for seen, num_rows in ((first, ROWS - 1), (second, ROWS - sealed)):
        assert len(seen) == num_rows > 1
        starts = Counter(tuple(each.prompt[: each.planned_tokens]) for each in seen if each.planned_tokens)
        announced = {tuple(each.prompt[: at.length]): at.num_users for each in seen for at in each.junctions}
        assert starts == announced
        assert sum(starts.values()) == num_rows - 1  # all but the first start after "prompt "


def test_an_attempt_that_lost_its_lease_is_fenced_and_its_epoch_leaves_no_shard_file(bench: Bench) -> None:
    real = bench.tools.repository.commit_shard

    def stolen_just_before(*args: object, **more: object) -> None:
        bench.tools.repository.release_shard(bench.shard.id, 1, reason="test", preempted=True)
        real(*args, **more)  # type: ignore[arg-type]

    bench.tools.repository.commit_shard = stolen_just_before  # type: ignore[method-assign,assignment]

    assert bench.run().ending is Ending.FENCED

    assert list((Path(bench.job.output_uri) / layout.SHARDS).iterdir()) == []
    assert bench.shard.state is ShardState.READY


def test_a_fenced_attempt_keeps_the_segment_that_sql_has_although_the_answer_was_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = bench.tools.repository
    seal, out = repository.seal_segment, Path(bench.job.output_uri)

    def lost(*arguments: object) -> None:
        seal(*arguments)  # type: ignore[arg-type]
        repository.release_shard(bench.shard.id, 1, reason="its lease ran out meanwhile", preempted=True)
        bench.tools.leases.beat()
        raise DatabaseDown("the answer was lost")

    monkeypatch.setattr(repository, "seal_segment", lost)

    assert bench.run().ending is Ending.FENCED

    [segment] = repository.segments(bench.shard.id)
    assert (out / segment.key).exists()
    assert [path.name for path in (out / layout.SEGMENTS).iterdir()] == [Path(segment.key).name]


def test_a_claim_whose_answer_was_lost_is_still_ours(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, lost = bench.tools.repository, [True]
    claim = repository.claim_shard

    def losing(*arguments: object, **named: object) -> object:
        found = claim(*arguments, **named)  # type: ignore[arg-type]
        if lost:
            lost.pop()
            raise DatabaseDown("the answer was lost")
        return found

    monkeypatch.setattr(repository, "claim_shard", losing)

    assert bench.run().ending is Ending.DONE
    assert (bench.shard.attempts, bench.shard.crashes) == (1, 0)


def test_a_failure_is_recorded_before_it_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "the disk is broken")

    monkeypatch.setattr(story, "write_shard", broken)

    with pytest.raises(ShardFailed, match=r"shard 0 of job 1, attempt 1: OSError.*the disk is broken"):
        bench.run()

    assert bench.shard.state is ShardState.READY
    assert (bench.shard.failures, bench.shard.crashes) == (1, 0)
    assert bench.shard.error is not None
    assert "the disk is broken" in bench.shard.error


@pytest.mark.parametrize("error", [MemoryError(), ValueError("no such value"), AssertionError("a bug of ours")])
def test_rows_that_cannot_be_sealed_whatever_the_reason_fail_the_attempt_and_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(_: object) -> None:
        raise error

    monkeypatch.setattr(SegmentWriter, "seal", broken)

    with pytest.raises(ShardFailed, match=type(error).__name__):
        bench.run()

    assert bench.shard.state is ShardState.READY
    assert (bench.shard.failures, bench.shard.crashes) == (1, 0)


def test_a_stop_while_sql_is_down_is_nobodys_failure(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt cannot wait for SQL any longer; it is back just in time to take the shard back."""

    def down(*_: object) -> None:
        bench.tools.stopping.set()
        raise DatabaseDown("no answer")

    monkeypatch.setattr(bench.tools.repository, "seal_segment", down)

    with pytest.raises(ShardFailed, match="DatabaseDown"):
        bench.run()

    assert bench.shard.state is ShardState.READY
    assert (bench.shard.failures, bench.shard.crashes, bench.shard.preemptions) == (0, 0, 1)


def test_an_engine_that_dies_fails_the_attempt_and_keeps_the_rows_that_were_done(bench: Bench) -> None:
    bench.take_engine(die=b"prompt 22")

    with pytest.raises(ShardFailed, match="EngineDead"):
        bench.run()

    assert bench.shard.state is ShardState.READY
    assert (bench.shard.failures, bench.shard.crashes) == (0, 1)
    assert bench.sealed() > 0


def test_while_sql_is_down_rows_wait_and_are_recorded_when_it_is_back(bench: Bench) -> None:
    real = bench.tools.repository.seal_segment
    failures = iter([True] * 3)

    def sometimes(*args: object) -> None:
        if next(failures, False):
            raise DatabaseDown("no answer")
        real(*args)  # type: ignore[arg-type]

    bench.tools.repository.seal_segment = sometimes  # type: ignore[method-assign,assignment]

    assert bench.run().ending is Ending.DONE
    assert bench.sealed() == ROWS


def test_every_seal_records_the_blocks_in_use_so_far(bench: Bench) -> None:
    bench.take_engine(die=b"prompt 22")

    with pytest.raises(ShardFailed):
        bench.run()

    assert [group.blocks_peak for group in bench.tools.repository.job_stats(bench.job.id).groups] == [8.0, 3.0]


def test_the_gate_knows_what_a_shard_still_owes(bench: Bench) -> None:
    limits = []
    real = bench.tools.gate.owe

    def note(shard_id: ShardId, sequences: int) -> None:
        limits.append(sequences)
        real(shard_id, sequences)

    bench.tools.gate.owe = note  # type: ignore[method-assign]

    bench.run()

    assert limits[0] == ROWS
    assert limits[-1] == 0
    assert limits == sorted(limits, reverse=True)


def test_an_ended_job_is_published_with_every_row_in_input_order(bench: Bench) -> None:
    bench.run()
    bench.tools.repository.advance_jobs()
    epoch = bench.tools.repository.claim_job(bench.job.id, "test", 60)
    assert epoch is not None

    publish_job(bench.tools.repository, bench.tools.repository.get_job(bench.job.id), epoch)

    table = pq.read_table(next((Path(bench.job.output_uri) / layout.DATA).glob("*.parquet")))
    assert table["row_index"].to_pylist() == list(range(ROWS))
    assert table["error_code"].to_pylist()[-1] == "invalid_request"
