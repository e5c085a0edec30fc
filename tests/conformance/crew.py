"""Laws of workers, of how they are and of their leaving, which hold on every database."""

from __future__ import annotations

import pytest

from storage.errors import Fenced
from storage.records import Health, WorkerRecord
from storage.repository import Repository


def register(repository: Repository, name: str, *, boot: str = "boot-1", model_key: str = "model-a") -> None:
    record = WorkerRecord(
        id=name,
        boot_id=boot,
        model_key=model_key,
        model_source="org/model",
        device="cpu",
        state="starting",
        heartbeat_age=0.0,
    )
    repository.register_worker(record)


def test_health_is_kept_as_ages_that_grow_on_the_clock_of_the_database(repository: Repository) -> None:
    register(repository, "gpu0@a")
    [new] = repository.workers()
    assert (new.loop_age, new.step_age, new.notice, new.drain_requested) == (None, None, None, False)

    repository.beat_worker("gpu0@a", "boot-1", "ready", Health(loop_age=10.0, step_age=100.0, notice="no room"))

    [found] = repository.workers()
    assert found.notice == "no room"
    assert found.loop_age is not None
    assert 10.0 <= found.loop_age < 20.0
    assert found.step_age is not None
    assert 100.0 <= found.step_age < 110.0
    repository.beat_worker("gpu0@a", "boot-1", "ready")
    assert [(each.loop_age, each.notice) for each in repository.workers()] == [(None, None)]


def test_a_worker_hears_with_its_heartbeat_that_it_is_to_drain_and_its_next_boot_is_not(repository: Repository) -> None:
    register(repository, "gpu0@a")
    register(repository, "gpu1@a")
    assert not repository.beat_worker("gpu0@a", "boot-1", "ready")

    asked = [repository.request_drain("gpu0@a", 60.0) for _ in range(2)]

    assert asked == [["gpu0@a"], ["gpu0@a"]]
    assert repository.beat_worker("gpu0@a", "boot-1", "ready")
    assert not repository.beat_worker("gpu1@a", "boot-1", "ready")
    register(repository, "gpu0@a", boot="boot-2")
    assert not repository.beat_worker("gpu0@a", "boot-2", "ready")
    with pytest.raises(Fenced):
        repository.beat_worker("gpu0@a", "boot-1", "ready")


def test_only_live_workers_are_asked_to_drain_and_no_reconciler(repository: Repository) -> None:
    for name in ("gpu0@a", "gpu1@a", "gpu2@a"):
        register(repository, name)
    register(repository, "reconciler-7@a", model_key="")
    repository.beat_worker("gpu1@a", "boot-1", "gone")

    assert repository.request_drain(None, 60.0) == ["gpu0@a", "gpu2@a"]
    assert repository.request_drain(None, -1.0) == []
    assert repository.request_drain("nobody", 60.0) == []
    assert repository.request_drain("reconciler-7@a", 60.0) == []
