"""A settled run is current or it is not, and says why; whoever settles it again changes nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.datasets import settle as module
from jobs.datasets.settle import Settled
from jobs.datasets.terms import DatasetTerms
from storage import layout
from storage.dataset.current import read_current
from storage.dataset.store import DatasetStore
from storage.durable import sha256_bytes
from storage.errors import NoSuchDataset
from storage.states import JobState
from tests.unit.jobs.datasets.world import CHECKS, MONDAY, TUESDAY, World
from tests.unit.storage.dataset.samples import NOON, days


def test_a_run_that_passes_its_gates_is_current(world: World) -> None:
    night, job = world.publish()

    settled = world.settle(night, job, DatasetTerms(min_success_rate=0.8))

    assert settled.published
    assert [(gate.name, gate.passed) for gate in settled.gates] == [("columns", True), ("min_success_rate", True)]
    assert world.current() == {MONDAY: "1"}
    assert "# stories" in (world.dataset / "README.md").read_text()


def test_a_failed_gate_keeps_the_pointer_and_the_partition_and_says_why(world: World) -> None:
    world.settle(*world.publish(MONDAY), DatasetTerms())
    before = (world.dataset / "current.json").read_bytes()
    night, job = world.publish(TUESDAY)

    settled = world.settle(night, job, DatasetTerms(min_success_rate=0.9, max_mean_tokens=3))

    assert not settled.published
    assert "min_success_rate: 0.833333 of all rows succeeded, wanted at least 0.9" in settled.reason
    assert "max_mean_tokens: 4 tokens" in settled.reason
    assert (world.dataset / "current.json").read_bytes() == before
    assert (world.dataset / "_runs" / TUESDAY / "1/manifest.json").exists()
    assert "| refused |" in (world.dataset / "README.md").read_text()


def test_an_exception_in_a_users_check_is_a_failed_gate(world: World) -> None:
    night, job = world.publish()

    settled = world.settle(night, job, DatasetTerms(checks=(f"{CHECKS}:broken",)))

    assert not settled.published
    assert "raised KeyError: 'no_such_column'" in settled.reason


def test_a_users_check_that_hangs_is_a_failed_gate(world: World) -> None:
    world.settle(*world.publish(MONDAY), DatasetTerms())
    night, job = world.publish(TUESDAY)

    settled = world.settle(night, job, DatasetTerms(checks=(f"{CHECKS}:hangs",), check_seconds=1))

    assert settled.reason == f"{CHECKS}:hangs: {CHECKS}:hangs ran for more than 1 s (check_seconds) and was stopped"
    assert world.current() == {MONDAY: "1"}


def test_a_users_check_that_dies_leaves_the_run_to_be_settled_again(world: World) -> None:
    world.settle(*world.publish(MONDAY), DatasetTerms())
    night, job = world.publish(TUESDAY)

    with pytest.raises(ChildProcessError, match="exits ended its process with code 3"):
        world.settle(night, job, DatasetTerms(checks=(f"{CHECKS}:exits",)))

    assert world.current() == {MONDAY: "1"}
    assert world.settle(night, job, DatasetTerms()).published


@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.EXPIRED, JobState.FAILED])
def test_what_a_job_published_that_did_not_complete_is_not_taken_in(world: World, state: JobState) -> None:
    night, job = world.publish()

    settled = world.settle(night, replace(job, state=state, error="the deadline passed"), DatasetTerms())

    assert settled == Settled(published=False, gates=(), reason=f"job 7 is {state.value}: the deadline passed")
    with pytest.raises(NoSuchDataset):
        world.current()


def test_a_job_without_results_leaves_no_trace_in_the_data_set(world: World) -> None:
    night, job = world.publish()
    shutil.rmtree(world.dataset)
    failed = replace(job, state=JobState.FAILED, published_generation=0, error="its model is gone")

    settled = world.settle(night, failed, DatasetTerms())

    assert settled.reason == "job 7 is failed: its model is gone"
    assert not world.dataset.exists()


def test_settling_again_changes_no_byte(world: World) -> None:
    night, job = world.publish()
    terms = DatasetTerms(keep_runs=3)
    first = world.settle(night, job, terms)
    files = {path: path.read_bytes() for path in world.dataset.rglob("*") if path.is_file()}

    again = world.settle(night, job, terms, NOON + days(3))

    assert again == first
    assert {path: path.read_bytes() for path in world.dataset.rglob("*") if path.is_file()} == files


def test_the_first_verdict_stands_when_the_terms_have_changed_since(world: World) -> None:
    night, job = world.publish()
    refused = world.settle(night, job, DatasetTerms(min_success_rate=1))

    again = world.settle(night, job, DatasetTerms())

    assert again == refused
    assert not again.published


def test_rows_that_ran_again_let_a_refused_run_be_settled_once_more(world: World) -> None:
    night, job = world.publish()
    world.settle(night, job, DatasetTerms(min_success_rate=0.8, max_mean_tokens=3))
    out = Path(job.output_uri)
    manifest = (out / layout.MANIFEST).read_bytes().replace(b'"generation": 1', b'"generation": 2')
    (out / layout.manifest_generation(2)).write_bytes(manifest)
    retried = replace(job, published_generation=2, generation=2, manifest_sha256=sha256_bytes(manifest))

    settled = world.settle(night, retried, DatasetTerms(min_success_rate=0.8))

    assert settled.published
    assert read_current(world.dataset).runs[0].generation == 2
    DatasetStore(world.dataset).check_integrity()


def test_a_run_with_nothing_new_is_published_with_no_rows(world: World) -> None:
    night, job = world.publish(rows=0)

    settled = world.settle(night, job, DatasetTerms(min_success_rate=0.9, min_mean_tokens=1))

    assert settled.published
    assert [run.rows for run in read_current(world.dataset).runs] == [0]


def test_retention_is_part_of_settling(world: World) -> None:
    terms = DatasetTerms(keep_runs=0, grace_hours=1)
    world.settle(*world.publish(MONDAY, "1"), terms)
    world.settle(*world.publish(MONDAY, "2"), terms)

    world.settle(*world.publish(TUESDAY), terms, NOON + days(1))

    assert [path.name for path in (world.dataset / "_runs" / MONDAY).iterdir()] == ["2"]


def test_results_that_cannot_be_read_are_not_judged(world: World) -> None:
    night, job = world.publish()
    part = Path(job.output_uri) / layout.part(layout.DATA, 0)
    whole = part.read_bytes()
    part.write_bytes(whole[:100])

    damaged = world.settle(night, job, DatasetTerms())
    part.write_bytes(whole)
    mended = world.settle(night, job, DatasetTerms())

    assert not damaged.published
    assert "part-00000.parquet" in damaged.reason
    assert mended.published


def test_only_the_ended_job_of_this_run_can_be_settled(world: World) -> None:
    night, job = world.publish()

    with pytest.raises(ValueError, match="settled when it has ended"):
        world.settle(night, replace(job, state=JobState.FINALIZING), DatasetTerms())
    with pytest.raises(ValueError, match="wrote to"):
        world.settle(replace(night, run="2"), job, DatasetTerms())


def test_a_verdict_has_the_gates_for_whoever_looks_later(world: World) -> None:
    night, job = world.publish()
    world.settle(night, job, DatasetTerms(max_cut_share=0.5))

    verdict = json.loads((Path(job.output_uri) / "_meta/verdict-0001.json").read_bytes())

    assert [gate["name"] for gate in verdict["gates"]] == ["columns", "max_cut_share"]
    assert (verdict["accepted"], verdict["job"], verdict["order"]) == (True, 7, 1)


def test_what_fails_after_the_verdict_takes_nothing_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    night, job = world.publish()

    def fail(*_: object) -> bytes:
        raise RuntimeError("a mistake in the card")

    monkeypatch.setattr(module, "card_bytes", fail)

    settled = world.settle(night, job, DatasetTerms())

    assert settled.published
    assert world.current() == {MONDAY: "1"}
