"""Two live workers never have one name, and a worker that comes back after a crash has its old one."""

from __future__ import annotations

import socket
from pathlib import Path

from jobs.names import Name, machine_mark, worker_name
from storage.records import WorkerRecord

HOST = socket.gethostname()
HERE, THERE = "aaaa", "bbbb"


def record(node: str, mark: str, *, age: float = 1.0, state: str = "ready") -> WorkerRecord:
    return WorkerRecord(
        id=node, boot_id=f"{mark}.1", model_key="k", model_source="m", device="cpu", state=state, heartbeat_age=age
    )


def name(*known: WorkerRecord) -> Name:
    return worker_name("cpu0", HERE, known, stale_seconds=30.0)


def test_a_name_is_device_and_host_and_a_boot_is_never_the_same() -> None:
    first, second = name(), name(record(f"cpu1@{HOST}", THERE))

    assert first.node == second.node == f"cpu0@{HOST}"
    assert first.boot_id != second.boot_id
    assert not first.inherits


def test_the_dead_process_of_this_name_on_this_machine_is_inherited_from_at_once() -> None:
    again = name(record(f"cpu0@{HOST}", HERE))

    assert (again.node, again.inherits) == (f"cpu0@{HOST}", True)


def test_a_live_worker_of_this_name_on_another_machine_keeps_it_and_its_shards() -> None:
    marked = name(record(f"cpu0@{HOST}", THERE))

    assert (marked.node, marked.inherits) == (f"cpu0-{HERE}@{HOST}", False)
    assert name(record(f"cpu0@{HOST}", THERE), record(marked.node, HERE)).inherits


def test_a_name_that_another_machine_has_left_is_free_but_its_leases_are_not_ours() -> None:
    for left in (record(f"cpu0@{HOST}", THERE, age=31.0), record(f"cpu0@{HOST}", THERE, state="gone")):
        free = name(left)

        assert (free.node, free.inherits) == (f"cpu0@{HOST}", False)


def test_a_machine_has_one_mark_and_another_machine_another(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()

    assert machine_mark(here) == machine_mark(here) != machine_mark(there)
