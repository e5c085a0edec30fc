"""Failpoints act at their place, at their turn, and not at all when none is set."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import failpoints
from storage.durable import write_atomic

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def test_without_a_specification_nothing_happens(tmp_path: Path) -> None:
    failpoints.arm("")

    write_atomic(tmp_path / "file", b"content")

    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_point_acts_at_its_turn_and_once(tmp_path: Path) -> None:
    failpoints.arm("rename.before:full@2")
    write_atomic(tmp_path / "file", b"first")

    with pytest.raises(OSError) as caught:
        write_atomic(tmp_path / "file", b"second")
    write_atomic(tmp_path / "other", b"third")

    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "file").read_bytes() == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "other"]


def test_a_point_can_kill_and_stop_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(signal, "pthread_kill", lambda thread, number: sent.append((thread, number)))
    failpoints.arm("claim.before:kill,claim.after:stop")

    failpoints.reach("claim.before")
    failpoints.reach("claim.after")

    assert sent == [(os.getpid(), signal.SIGKILL), (threading.get_ident(), signal.SIGSTOP)]


@pytest.mark.parametrize("specification", ["nowhere:kill", "claim.before:explode", "claim.before"])
def test_a_point_or_an_action_that_there_is_none_of_is_refused(specification: str) -> None:
    with pytest.raises(ValueError, match="no failpoint"):
        failpoints.arm(specification)


def test_every_point_is_in_the_program_once() -> None:
    sources = "\n".join(path.read_text() for folder in ("jobs", "storage") for path in (ROOT / folder).rglob("*.py"))

    reached = re.findall(r'failpoints\.reach\("([a-z_.]+)"\)', sources)

    assert sorted(reached) == sorted(failpoints.NAMES)
