"""Nights of a growing input: each row is generated once, and rows that run again are the ones that they were."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.datasets.settle import Settled, settle_run
from jobs.datasets.terms import DatasetTerms
from jobs.options import SubmitOptions
from jobs.planning import silent
from jobs.publishing import publish_job
from jobs.retrying import Choice, retry
from jobs.sampling import Sampling
from jobs.shard import run_shard
from jobs.submit import submit
from storage.dataset.card import SNIPPETS
from storage.output import sweep
from storage.records import Job
from storage.states import JobState
from tests.unit.jobs.bench import Bench, make_bench

pytestmark = pytest.mark.integration
NIGHTS, ROWS = 5, 50


class Nights:
    """A data set that is made from one input file, with a worker in this process."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.tools, self.repository = bench.tools, bench.tools.repository
        self.input, self.dataset = folder / "rows.parquet", folder / "stories"
        self.options = SubmitOptions(
            inputs=(str(self.input),),
            output=self.dataset,
            model=str(folder / "model"),
            sampling=Sampling().overridden({"max_tokens": 6}),
            only_new=self.dataset,
            seed=5,  # how long the fake engine goes on follows from it
        )

    def run(self, night: int, **columns: Any) -> tuple[Job, Settled]:
        pq.write_table(pa.table(columns), self.input)
        label = f"2026-11-{night + 1:02d}"
        options = replace(self.options, output=self.dataset / "_runs" / label / "1")
        job = self.finish(submit(options, self.repository, self.tools.settings).job)
        return job, settle_run(job, label, "1", self.dataset, DatasetTerms(min_success_rate=0.9))

    def finish(self, job: Job) -> Job:
        """Run its shards and publish it, as worker and reconciler do."""
        for shard in self.repository.shards(job.id):
            if shard.generation == job.generation:
                run_shard(self.tools, shard.id, threading.Event())
        self.repository.advance_jobs()
        epoch = self.repository.claim_job(job.id, "test", 60)
        assert epoch is not None
        published = publish_job(self.repository, self.repository.get_job(job.id), epoch)
        ended = self.repository.complete_job(job.id, epoch, published.manifest_sha256)
        sweep(Path(job.output_uri), job.generation)
        return ended


@pytest.fixture
def nights(tmp_path: Path) -> Iterator[Nights]:
    with make_bench(tmp_path) as bench:
        yield Nights(bench, tmp_path)


def inputs(named: bool) -> list[dict[str, list[str]]]:
    """Each night four fifths of the rows were there before, in another order."""
    random_order, seen, made = random.Random(5), [], []
    for night in range(NIGHTS):
        fresh = [f"row {night}.{place}" for place in range(ROWS if not seen else ROWS // 5)]
        rows = [*fresh, *random_order.sample(seen, ROWS - len(fresh))]
        random_order.shuffle(rows)
        seen += fresh
        made.append({"prompt": rows, **({"custom_id": [f"id of {row}" for row in rows]} if named else {})})
    return made


@pytest.mark.parametrize("named", [True, False], ids=["ids", "contents"])
def test_five_nights_with_a_fifth_of_new_rows_generate_each_row_once(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    every = inputs(named)

    ended = [nights.run(night, **columns) for night, columns in enumerate(every)]

    assert [job.rows_succeeded for job, _ in ended] == [50, 10, 10, 10, 10]
    assert all(settled.published for _, settled in ended)
    monkeypatch.chdir(nights.dataset)
    names: dict[str, Any] = {}
    exec(SNIPPETS["DuckDB"], names)
    nightly = names["table"]
    total, keys = duckdb.sql("SELECT count(*), count(DISTINCT custom_id) FROM nightly").fetchall()[0]
    assert total == keys == len({row for columns in every for row in columns["prompt"]}) == 90
    assert len(set(nightly.to_arrow_table()["dt"].to_pylist())) == NIGHTS


def test_a_night_with_nothing_new_is_published_without_rows_and_the_next_one_goes_on(nights: Nights) -> None:
    nights.run(0, prompt=["a", "b"])

    job, settled = nights.run(1, prompt=["b", "a"])
    later, _ = nights.run(2, prompt=["b", "c"])

    assert (job.state, job.rows_total) == (JobState.COMPLETED, 0)
    assert settled.published
    assert later.rows_succeeded == 1
    current = json.loads((nights.dataset / "current.json").read_bytes())
    assert [run["rows"] for run in current["labels"].values()] == [2, 0, 1]


def test_rows_of_a_job_of_new_rows_that_run_again_are_the_rows_that_they_were(nights: Nights, tmp_path: Path) -> None:
    nights.run(0, prompt=[f"old {row}" for row in range(20)])
    prompts = [f"{'old' if row % 2 else 'new'} {row}" for row in range(20)]
    pq.write_table(pa.table({"prompt": prompts}), nights.input)
    out = tmp_path / "OUT"
    job = nights.finish(submit(replace(nights.options, output=out), nights.repository, nights.tools.settings).job)
    before = {row["custom_id"]: row for row in pq.read_table(out / "data").to_pylist()}
    choice = Choice(finish_reasons=frozenset({"length"}), options={"max_tokens": 40})

    retried = retry(job.id, choice, nights.repository, nights.tools.settings, silent)
    nights.finish(retried.job)

    after = {row["custom_id"]: row for row in pq.read_table(out / "data").to_pylist()}
    assert retried.plan is not None
    assert retried.plan.record.num_rows > 0
    assert list(after) == list(before)
