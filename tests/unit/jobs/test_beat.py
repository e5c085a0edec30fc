"""What Celery beat is told to do, and that whoever serves the control queue understands it."""

from __future__ import annotations

import threading

from celery.beat import Scheduler

from jobs.app import CONTROL_QUEUE
from jobs.beat import beat_app
from jobs.control import serving_control
from jobs.settings import Settings
from jobs.tasks import TICK

BROKER = "memory://"
EVERY = Settings().schedule_tick_seconds


def scheduler() -> Scheduler:
    """As `nightmill beat` runs it: it keeps its entries in memory."""
    return Scheduler(app=beat_app(BROKER, prefix="x:", every=EVERY))


def test_beat_has_one_entry_which_asks_for_a_tick_every_half_minute() -> None:
    entries = scheduler().schedule

    assert list(entries) == ["tick"]
    entry = entries["tick"]
    assert (entry.task, entry.args, entry.kwargs) == (TICK, (), {})
    assert entry.schedule.run_every.total_seconds() == EVERY == 30.0
    assert entry.options == {"queue": CONTROL_QUEUE, "expires": EVERY}  # nobody wants yesterday's


def test_beat_looks_at_its_entry_as_often_as_that_comes_due() -> None:
    assert beat_app(BROKER, prefix="x:", every=0.5).conf.beat_max_loop_interval == 0.5
    assert beat_app(BROKER, prefix="x:", every=600.0).conf.beat_max_loop_interval == 30


def test_what_beat_sends_makes_a_reconciler_look_at_the_schedules() -> None:
    beat, woken = scheduler(), threading.Event()

    with serving_control(BROKER, "x:", woken.set):
        beat.apply_async(beat.schedule["tick"])

        assert woken.wait(30)
