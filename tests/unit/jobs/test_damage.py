"""Recorded files that are damaged: their rows run again, and nothing is published before."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.damage import find_damages
from jobs.outcome import Ending, ShardFailed
from jobs.publishing import publish_job
from jobs.quarantine import divide_crashed
from jobs.shard import run_shard
from storage import layout
from storage.errors import FileDamaged
from storage.parquet.damage import FilesDamaged
from storage.records import Shard
from storage.states import JobState, ShardState
from tests.conformance.samples import MANY, OVER
from tests.unit.jobs.bench import ROWS, Bench, wait_for_rows

Rot = Callable[[Path], object]
ROTS: list[Rot] = [
    lambda path: path.unlink(),
    lambda path: path.write_bytes(path.read_bytes()[:-7]),
    lambda path: path.write_bytes(path.read_bytes()[:-7] + b"garbled"),
    lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
]
NAMES = ["lost", "cut", "garbled", "flipped"]


def stop_with_some_rows_sealed(bench: Bench) -> None:
    bench.take_engine(rows_per_second=60)
    stopper = threading.Thread(target=lambda: (wait_for_rows(bench, 8), bench.tools.stopping.set()))
    stopper.start()
    assert bench.run().ending is Ending.PREEMPTED
    stopper.join()
    bench.take_engine()


def out(bench: Bench) -> Path:
    return Path(bench.job.output_uri)


def publish(bench: Bench) -> None:
    """As the reconciler does."""
    repository = bench.tools.repository
    repository.advance_jobs()
    epoch = repository.claim_job(bench.job.id, "test", 60)
    assert epoch is not None
    job = repository.get_job(bench.job.id)
    try:
        published = publish_job(repository, job, epoch)
    except FilesDamaged as damage:
        repository.reopen_shards(job.id, epoch, find_damages(repository, job, damage.files, limit=2))
    else:
        repository.complete_job(job.id, epoch, published.manifest_sha256)
    repository.check_integrity()


def published_rows(bench: Bench) -> list[int]:
    assert bench.tools.repository.get_job(bench.job.id).state is JobState.COMPLETED
    return list(pq.read_table(out(bench) / layout.DATA)["row_index"].to_pylist())


@pytest.mark.parametrize("rot", ROTS, ids=NAMES)
def test_rows_of_a_damaged_segment_are_made_again_by_the_next_attempt(bench: Bench, rot: Rot) -> None:
    stop_with_some_rows_sealed(bench)
    sealed = bench.tools.repository.segments(bench.shard.id)
    rot(out(bench) / sealed[-1].key)

    outcome = bench.run()

    assert outcome.ending is Ending.DONE
    assert outcome.stats.rows == ROWS
    assert bench.shard.failures == 0
    bench.tools.repository.check_integrity()
    publish(bench)
    assert published_rows(bench) == list(range(ROWS))


def test_without_the_output_directory_an_attempt_fails_and_drops_nothing(bench: Bench) -> None:
    stop_with_some_rows_sealed(bench)
    sealed = bench.sealed()
    elsewhere = out(bench).rename(out(bench).with_name("unmounted"))

    with pytest.raises(ShardFailed, match="is missing"):
        bench.run()

    elsewhere.rename(out(bench))
    assert bench.sealed() == sealed


@pytest.mark.parametrize("rot", ROTS, ids=NAMES)
def test_a_damaged_shard_file_is_merged_again_before_the_job_is_published(bench: Bench, rot: Rot) -> None:
    bench.run()
    rot(out(bench) / str(bench.shard.out_key))

    publish(bench)

    assert not (out(bench) / layout.MANIFEST).exists()
    assert (bench.shard.state, bench.shard.reopenings) == (ShardState.READY, 1)
    seen = bench.watch_requests()
    assert bench.run().ending is Ending.DONE
    assert seen == []  # its segments had every row
    publish(bench)
    assert published_rows(bench) == list(range(ROWS))


def test_rows_whose_segment_is_damaged_with_the_shard_file_run_again(bench: Bench) -> None:
    bench.run()
    for key in (str(bench.shard.out_key), bench.tools.repository.segments(bench.shard.id)[0].key):
        (out(bench) / key).unlink()

    publish(bench)

    assert bench.sealed() == 0
    assert bench.run().stats.rows == ROWS
    publish(bench)
    assert published_rows(bench) == list(range(ROWS))


def test_rows_that_a_split_shard_has_lost_run_again_as_a_part_of_it(bench: Bench) -> None:
    repository = bench.tools.repository
    stop_with_some_rows_sealed(bench)
    for _ in range(3):
        assert repository.claim_shard(bench.shard.id, "w1", OVER, alone=True) is not None
        repository.expire_leases(MANY)
    assert divide_crashed(repository) == 1
    run_open_shards(bench)
    (out(bench) / repository.segments(bench.shard.id)[0].key).unlink()

    publish(bench)

    assert bench.shard.state is ShardState.SPLIT
    assert run_open_shards(bench) > 0
    publish(bench)
    assert published_rows(bench) == list(range(ROWS))


def run_open_shards(bench: Bench) -> int:
    """How many there were."""
    ready = [shard for shard in bench.tools.repository.shards(bench.job.id) if shard.state is ShardState.READY]
    for shard in ready:
        assert run_shard(bench.tools, shard.id, threading.Event(), alone=True).ending is Ending.DONE
    return len(ready)


def test_a_shard_is_not_reopened_for_ever(bench: Bench) -> None:
    def damage(shard: Shard) -> None:
        (out(bench) / str(shard.out_key)).unlink()

    for _ in range(2):
        bench.run()
        damage(bench.shard)
        publish(bench)
    bench.run()
    damage(bench.shard)

    with pytest.raises(FileDamaged, match=r"shard-00000\.e3\.parquet is missing; files of shard 0 .* look at the disk"):
        publish(bench)

    assert bench.shard.state is ShardState.DONE


def test_what_a_cancelled_job_has_lost_does_not_run_again(bench: Bench) -> None:
    stop_with_some_rows_sealed(bench)
    repository = bench.tools.repository
    repository.request_cancel(bench.job.id)
    (out(bench) / repository.segments(bench.shard.id)[0].key).unlink()

    publish(bench)
    publish(bench)

    job = repository.get_job(bench.job.id)
    assert (job.state, job.rows_canceled + job.rows_errored) == (JobState.CANCELLED, ROWS)
    assert pq.read_table(out(bench) / layout.DATA).num_rows == ROWS
