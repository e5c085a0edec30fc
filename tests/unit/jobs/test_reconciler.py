from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs import reconciler as module
from jobs.dispatch import BrokerDown
from jobs.reconciler import Reconciler
from jobs.settings import Settings
from storage import layout
from storage.errors import DatabaseDown, Fenced, FileDamaged
from storage.parquet.damage import FilesDamaged
from storage.states import JobState


@dataclass
class FakeSql:
    """One finished job, and a list of what was asked."""

    asked: list[str] = field(default_factory=list)
    free: bool = True
    epoch: int = 3
    failures: list[Exception] = field(default_factory=list)
    jobs: list[SimpleNamespace] = field(default_factory=list)
    owner: SimpleNamespace | None = None  # of the output directory
    fences_failures: bool = False
    file: Path | None = None  # of the database

    def list_jobs(self, limit: int) -> list[SimpleNamespace]:
        return list(self.jobs)

    def find_job(self, *, output_uri: str) -> SimpleNamespace | None:
        return self.owner

    def expire_leases(self, max_attempts: int) -> list[object]:
        if self.failures:
            raise self.failures.pop()
        self.asked.append("expire")
        return []

    def crashed_shards(self) -> list[object]:
        return []

    def advance_jobs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(id=7, output_uri="/nowhere", generation=1)]

    def get_job(self, job_id: int) -> SimpleNamespace:
        return self.advance_jobs()[0]

    def claim_job(self, job_id: int, owner: str, lease_seconds: float) -> int | None:
        return self.epoch if self.free else None

    def stop_jobs(self) -> list[object]:
        return []

    def unplanned_jobs(self, idle_seconds: float) -> list[object]:
        return []

    def has_schedules(self) -> bool:
        return False

    def renew_job(self, job_id: int, epoch: int, lease_seconds: float) -> None:
        self.asked.append("renew")

    def release_job(self, job_id: int, epoch: int) -> None:
        self.asked.append(f"release {job_id} {epoch}")

    def complete_job(self, job_id: int, epoch: int, sha256: str, cause: str | None) -> SimpleNamespace:
        self.asked.append(f"complete {job_id} {epoch} {sha256} {cause}")
        return SimpleNamespace(state="completed")

    def reopen_shards(self, job_id: int, epoch: int, damages: list[str]) -> None:
        self.asked.append(f"reopen {job_id} {epoch} {damages}")

    def fail_job(self, job_id: int, epoch: int, error: str) -> None:
        if self.fences_failures:
            raise Fenced("another one has published")
        self.asked.append(f"fail {job_id} {epoch} {error}")


class FakeDispatcher:
    def __init__(self) -> None:
        self.fills = 0

    def fill(self) -> int:
        self.fills += 1
        return 0


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What happens to a job that is published: an exception in this list is raised."""
    outcome: list[object] = []

    def publish(repository: object, job: object, epoch: int, *, beat: object) -> SimpleNamespace:
        if outcome and isinstance(outcome[0], Exception):
            raise outcome[0]
        return SimpleNamespace(manifest_sha256="sha", cause="context_length (too long)")

    monkeypatch.setattr(module, "publish_job", publish)
    monkeypatch.setattr(module, "sweep", lambda out, generation: outcome.append("swept"))
    return outcome


def reconciler(sql: FakeSql, dispatcher: FakeDispatcher) -> Reconciler:
    return Reconciler(Settings(reconcile_seconds=0.01, lease_seconds=0.0), sql, dispatcher)  # type: ignore[arg-type]


def test_a_tick_expires_publishes_sweeps_and_dispatches(published: list[object]) -> None:
    sql, dispatcher = FakeSql(), FakeDispatcher()

    reconciler(sql, dispatcher).tick()

    assert sql.asked == ["expire", "complete 7 3 sha context_length (too long)"]
    assert published == ["swept"]
    assert dispatcher.fills == 1


def test_a_job_that_another_process_publishes_is_left_alone(published: list[object]) -> None:
    sql = FakeSql(free=False)

    reconciler(sql, FakeDispatcher()).tick()

    assert sql.asked == ["expire"]


@pytest.mark.parametrize("error", [FileDamaged("shard 3 is damaged"), AssertionError("bug"), KeyError("parts")])
def test_a_job_that_cannot_be_published_fails_with_the_reason(published: list[object], error: Exception) -> None:
    sql, dispatcher = FakeSql(), FakeDispatcher()
    published.append(error)

    reconciler(sql, dispatcher).tick()

    assert sql.asked[-1].startswith("fail 7 3 its output could not be published")
    assert dispatcher.fills == 1


def test_a_job_of_which_files_are_damaged_is_not_published_but_runs_on(
    published: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = FakeSql()
    published.append(FilesDamaged({"shard-00003.parquet": "shard-00003.parquet is missing"}))
    monkeypatch.setattr(module, "find_damages", lambda repository, job, files, limit: list(files))

    reconciler(sql, FakeDispatcher()).tick()

    assert sql.asked == ["expire", "reopen 7 3 ['shard-00003.parquet']"]


def test_a_job_of_which_files_are_damaged_too_often_fails_with_the_reason(
    published: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hopeless(repository: object, job: object, files: object, limit: int) -> list[object]:
        raise FileDamaged(f"found damaged {limit} times before")

    sql = FakeSql()
    published.append(FilesDamaged({"shard-00003.parquet": "shard-00003.parquet is missing"}))
    monkeypatch.setattr(module, "find_damages", hopeless)

    reconciler(sql, FakeDispatcher()).tick()

    assert sql.asked == ["expire", "fail 7 3 its output could not be published: found damaged 3 times before"]


def test_a_reconciler_that_is_stopped_leaves_a_job_to_the_next_in_the_middle_of_publishing(
    published: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    sql, stop = FakeSql(), threading.Event()

    def publish(repository: object, job: object, epoch: int, *, beat: Callable[[], None]) -> None:
        beat()
        stop.set()
        beat()
        published.append("went on")

    monkeypatch.setattr(module, "publish_job", publish)

    reconciler(sql, FakeDispatcher()).run(stop)

    assert published == []
    assert sql.asked == ["expire", "release 7 3"]


@pytest.mark.parametrize("error", [OSError(5, "bad disk"), MemoryError()])
def test_a_machine_that_fails_is_tried_again_and_ends_the_job_only_after_several_tries(
    published: list[object], error: Exception
) -> None:
    published.append(error)
    limit = Settings().max_shard_attempts
    early, late = FakeSql(epoch=limit), FakeSql(epoch=limit + 1)

    for sql in (early, late):
        reconciler(sql, FakeDispatcher()).tick()

    assert early.asked == ["expire"]
    assert late.asked[-1].startswith(f"fail 7 {limit + 1} its output could not be published")


@pytest.mark.parametrize("error", [Fenced("another has it"), DatabaseDown("gone"), OSError(28, "full")])
def test_a_publisher_that_lost_its_right_its_database_or_its_disk_space_says_nothing_of_the_job(
    published: list[object], error: Exception
) -> None:
    sql = FakeSql()
    published.append(error)

    reconciler(sql, FakeDispatcher()).tick()

    assert sql.asked == ["expire"]


def test_an_outage_of_sql_or_broker_only_makes_the_loop_wait(published: list[object]) -> None:
    stop = threading.Event()
    sql = FakeSql(free=False, failures=[DatabaseDown("gone"), BrokerDown("gone"), DatabaseDown("gone")])
    dispatcher = FakeDispatcher()
    thread = threading.Thread(target=reconciler(sql, dispatcher).run, args=(stop,))
    thread.start()

    while dispatcher.fills < 2:
        assert thread.is_alive()
        stop.wait(0.01)
    stop.set()
    thread.join(5)

    assert not thread.is_alive()
    assert sql.failures == []


def test_a_reconciler_that_slept_while_another_published_and_swept_goes_on(published: list[object]) -> None:
    sql, dispatcher = FakeSql(fences_failures=True), FakeDispatcher()
    published.append(FileDamaged("shard 0 is missing"))

    reconciler(sql, dispatcher).tick()

    assert dispatcher.fills == 1


@pytest.mark.parametrize(
    ("state", "generation", "owner", "swept"),
    [
        ("completed", 1, 7, True),
        ("completed", 1, 8, False),  # retired: the directory is a newer job's
        ("failed", 0, 7, False),  # never published: its rows are not in data/
        ("finalizing", 1, 7, False),
    ],
)
def test_a_start_sweeps_what_was_published_and_not_swept(
    published: list[object], tmp_path: Path, state: str, generation: int, owner: int, swept: bool
) -> None:
    (tmp_path / layout.INPROGRESS).mkdir()
    job = SimpleNamespace(id=7, state=JobState(state), published_generation=generation, output_uri=str(tmp_path))
    sql = FakeSql(jobs=[job], owner=SimpleNamespace(id=owner))

    reconciler(sql, FakeDispatcher()).sweep_published()

    assert published == (["swept"] if swept else [])


def test_after_an_outage_of_the_database_leases_get_time_to_be_renewed(published: list[object]) -> None:
    sql, clock = FakeSql(free=False, failures=[DatabaseDown("away")]), [100.0]
    ours = Reconciler(
        Settings(lease_seconds=60.0),
        sql,  # type: ignore[arg-type]
        FakeDispatcher(),  # type: ignore[arg-type]
        monotonic=lambda: clock[0],
    )
    asked = []

    with pytest.raises(DatabaseDown):
        ours.tick()
    for now in (110.0, 159.0, 161.0):
        clock[0] = now
        ours.tick()
        asked.append(len(sql.asked))

    assert asked == [0, 0, 1]


def test_a_reconciler_that_is_started_gives_leases_time_to_be_renewed(published: list[object]) -> None:
    sql, clock = FakeSql(free=False), [100.0]
    ours = Reconciler(
        Settings(),
        sql,  # type: ignore[arg-type]
        FakeDispatcher(),  # type: ignore[arg-type]
        grace_seconds=20.0,
        monotonic=lambda: clock[0],
    )
    asked = []

    for now in (100.0, 119.0, 121.0):
        clock[0] = now
        ours.tick()
        asked.append(len(sql.asked))

    assert asked == [0, 0, 1]
