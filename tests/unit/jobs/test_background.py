from __future__ import annotations

import threading

import pytest

from jobs.background import OneAtATime
from storage.errors import DatabaseDown


def test_work_is_not_begun_twice_at_the_same_time() -> None:
    once, go = OneAtATime("work"), threading.Event()

    assert once.start(go.wait)
    assert not once.start(go.wait)
    go.set()
    once.wait()

    assert once.start(lambda: None)
    once.wait()


@pytest.mark.parametrize("error", [DatabaseDown("away"), KeyError("oops")])
def test_work_that_fails_is_logged_and_begun_again(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    once, calls = OneAtATime("work"), []

    def fail() -> None:
        calls.append(1)
        raise error

    for _ in range(2):
        assert once.start(fail)
        once.wait()

    assert len(calls) == 2
    assert caplog.text.count("work ") == 2
