"""Counts add up whatever was read when, and the right process is named as missing."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from jobs import report
from jobs.models import model_ref, named_model
from storage.records import GroupStats, Job, ModelRef, PlanRecord, RunStats, Shard, ShardId, WorkerRecord
from storage.states import JobState, ShardState

MakeJob = Callable[..., Job]
MakeShard = Callable[..., Shard]


def worker(key: str = "k1", source: str = "org/model") -> WorkerRecord:
    return WorkerRecord(
        id="gpu0@host", boot_id="b", model_key=key, model_source=source, device="cpu", state="ready", heartbeat_age=1.0
    )


def parts_sum(counts: dict[str, int]) -> int:
    return sum(count for name, count in counts.items() if name != "total")


def test_rows_of_a_running_shard_that_are_not_sealed_are_running(make_job: MakeJob, make_shard: MakeShard) -> None:
    shards = [make_shard(state=ShardState.RUNNING), make_shard(id=ShardId(2), row_lo=50, row_hi=100)]

    counts = report.row_counts(make_job(rows_succeeded=10), shards, {ShardId(1): 10})

    assert counts == {
        "total": 100,
        "pending": 50,
        "running": 40,
        "succeeded": 10,
        "errored": 0,
        "expired": 0,
        "canceled": 0,
    }


def test_samples_of_a_row_count_as_rows(make_job: MakeJob, make_shard: MakeShard) -> None:
    counts = report.row_counts(make_job(), [make_shard(state=ShardState.RUNNING, num_outputs=100)], {})

    assert (counts["running"], counts["pending"]) == (100, 0)


@pytest.mark.parametrize("sealed", [0, 30, 50, 99])
@pytest.mark.parametrize("done", [0, 60, 100, 101])
def test_counts_sum_to_the_total_even_when_the_records_disagree(
    make_job: MakeJob, make_shard: MakeShard, sealed: int, done: int
) -> None:
    shards = [make_shard(state=ShardState.RUNNING), make_shard(id=ShardId(2), state=ShardState.RUNNING)]

    counts = report.row_counts(make_job(rows_succeeded=done), shards, {ShardId(1): sealed})

    assert parts_sum(counts) == counts["total"]
    assert min(counts.values()) >= 0


def test_nothing_runs_in_a_finished_job(make_job: MakeJob, make_shard: MakeShard) -> None:
    job = make_job(state=JobState.CANCELLED, rows_succeeded=20, rows_canceled=80)

    assert report.row_counts(job, [make_shard(state=ShardState.RUNNING)], {})["running"] == 0


def test_statistics_have_exactly_the_promised_names(make_job: MakeJob) -> None:
    group = GroupStats(index=0, kind="sliding", layers=15, block_size=16, window=512, blocks_shared=3)
    stats = RunStats(
        rows=2,
        prompt_tokens=10,
        cached_tokens=8,
        computed_tokens=2,
        completion_tokens=6,
        engine_seconds=2.0,
        groups=(group,),
    )

    told = report.statistics(make_job(), stats)

    names = (
        "job generations rows prompt_tokens planned_cached_tokens cached_tokens computed_tokens lower_bound_tokens "
        "computed_over_bound completion_tokens forked_tokens recomputed_tokens "
        "wasted_tokens engine_seconds tokens_per_second hit_rate limited_by groups"
    )
    assert list(told) == names.split()
    assert (told["hit_rate"], told["tokens_per_second"]) == (0.8, 3.0)
    counters = ["allocated", "shared", "copied", "evicted", "peak", "mean"]
    names_of_a_group = ["kind", "layers", "block_size", "window", *(f"blocks_{each}" for each in counters)]
    assert list(told["groups"][0]) == names_of_a_group


PLAN = PlanRecord(
    path="p", sha256="s", num_rows=100, prompt_tokens=500, predicted_cached_tokens=300, lower_bound_tokens=160
)


def test_what_was_planned_and_what_limited_it_stand_beside_what_was_cached(make_job: MakeJob) -> None:
    limits = (("block size", 60), ("evicted", 140))
    stats = RunStats(prompt_tokens=500, planned_tokens=340, cached_tokens=300, computed_tokens=200, limited_by=limits)

    told = report.statistics(make_job(plan=PLAN, rows_succeeded=98, rows_errored=2), stats)

    assert (told["planned_cached_tokens"], told["cached_tokens"]) == (340, 300)
    assert (told["lower_bound_tokens"], told["computed_over_bound"]) == (160, 1.25)
    assert list(told["limited_by"].items()) == [("evicted", 140), ("block size", 60)]


@pytest.mark.parametrize(
    ("plan", "rows"),
    [
        (PLAN, {"rows_succeeded": 99}),
        (PLAN, {"rows_succeeded": 60, "rows_canceled": 40}),
        (replace(PLAN, lower_bound_tokens=0), {"rows_errored": 100}),
        (None, {"rows_succeeded": 100}),
    ],
)
def test_there_is_no_ratio_to_a_bound_that_is_not_that_of_the_rows(
    make_job: MakeJob, plan: PlanRecord | None, rows: dict[str, int]
) -> None:
    told = report.statistics(make_job(plan=plan, **rows), RunStats(computed_tokens=200))

    assert told["computed_over_bound"] is None


def test_a_group_of_state_layers_counts_slots_which_have_no_size_in_tokens(make_job: MakeJob) -> None:
    group = GroupStats(index=1, kind="linear", layers=6, block_size=0, window=None, blocks_allocated=4, blocks_peak=3.0)

    (told,) = report.statistics(make_job(), RunStats(groups=(group,)))["groups"]

    assert (told["kind"], told["layers"], told["block_size"], told["window"]) == ("linear", 6, None, None)
    assert (told["blocks_allocated"], told["blocks_peak"], told["blocks_shared"]) == (4, 3.0, 0)


def test_rates_of_a_job_that_has_not_begun_are_unknown_rather_than_zero(make_job: MakeJob) -> None:
    told = report.statistics(make_job(), RunStats())

    assert (told["hit_rate"], told["tokens_per_second"]) == (None, None)


RECONCILER = replace(worker(key="", source="reconciler"), id="reconciler@host")


def separate(*records: WorkerRecord) -> report.Staff:
    return report.Staff.of(records, embedded=False, owner=False)


def test_a_job_without_a_worker_for_its_model_names_the_command(make_job: MakeJob, make_shard: MakeShard) -> None:
    missing = report.missing_processes(make_job(), [make_shard()], separate(worker("k2", "org/other"), RECONCILER))

    assert missing == [
        "no live worker can serve org/model (live workers serve org/other): "
        "start one with `nightmill worker --model org/model --dtype float32`"
    ]


@pytest.mark.parametrize(
    ("model", "command"),
    [
        (model_ref("org/m", "v2", "bfloat16"), "nightmill worker --model org/m --model-revision v2 --dtype bfloat16"),
        (model_ref("/my models/m", None, "auto"), "nightmill worker --model '/my models/m' --dtype auto"),
    ],
)
def test_the_advised_command_starts_a_worker_of_the_job_s_own_queue(model: ModelRef, command: str) -> None:
    advised = report.serving_command(model)

    flags = dict(pairwise(shlex.split(advised)))
    assert advised == command
    assert named_model(flags["--model"], flags.get("--model-revision"), flags["--dtype"]) == model


def test_a_job_with_a_limit_of_its_own_asks_for_a_worker_with_the_same() -> None:
    limited = model_ref("org/m", None, "float32", 512)

    assert report.serving_command(limited, 512).startswith(
        "NIGHTMILL_MAX_MODEL_LEN=512 nightmill worker --model org/m "
    )


def test_a_worker_that_drains_or_has_gone_serves_nobody(make_job: MakeJob, make_shard: MakeShard) -> None:
    leaving = [replace(worker(), state="draining"), replace(worker(), state="gone")]

    missing = report.missing_processes(make_job(), [make_shard()], separate(*leaving, RECONCILER))

    assert [line.partition(":")[0] for line in missing] == ["no live worker can serve org/model"]


def test_a_missing_reconciler_is_named(make_job: MakeJob, make_shard: MakeShard) -> None:
    gone = replace(RECONCILER, state="gone")

    (line,) = report.missing_processes(make_job(), [make_shard()], separate(worker(), gone))

    assert "nightmill reconciler" in line


def test_nothing_is_missing_with_worker_and_reconciler(make_job: MakeJob, make_shard: MakeShard) -> None:
    assert report.missing_processes(make_job(), [make_shard()], separate(worker(), RECONCILER)) == []


def test_a_finished_job_misses_nobody(make_job: MakeJob, make_shard: MakeShard) -> None:
    assert report.missing_processes(make_job(state=JobState.FAILED), [make_shard()], separate()) == []


def test_a_job_whose_shards_are_done_needs_no_worker(make_job: MakeJob, make_shard: MakeShard) -> None:
    done = make_shard(state=ShardState.DONE)

    assert report.missing_processes(make_job(state=JobState.FINALIZING), [done], separate(RECONCILER)) == []


@pytest.mark.parametrize(("owner", "lines"), [(True, 0), (False, 1)])
def test_in_embedded_mode_only_the_owner_can_be_missing(
    make_job: MakeJob, make_shard: MakeShard, owner: bool, lines: int
) -> None:
    staff = report.Staff.of([], embedded=True, owner=owner)

    assert len(report.missing_processes(make_job(), [make_shard()], staff)) == lines


def test_a_paused_job_misses_nobody_but_whoever_resumes_it(make_job: MakeJob, make_shard: MakeShard) -> None:
    nobody = report.Staff({}, reconciler=False, embedded=False, owner=False)

    missing = report.missing_processes(make_job(state=JobState.PAUSED), [make_shard()], nobody)

    assert missing == ["job 7 is paused: `nightmill resume 7` lets it go on"]
