"""`nightmill beat`: Celery beat with one entry, which asks for a look at the schedules. It keeps nothing.

What is due is decided by whoever looks, from SQL: a second beat, or none at all, changes nothing.
"""

from __future__ import annotations

import logging
import signal
from types import FrameType
from typing import NoReturn

from celery.beat import Scheduler, Service

from jobs.app import CONTROL_QUEUE, NightmillApp, make_app
from jobs.embedded import connect
from jobs.settings import Settings
from jobs.tasks import TICK

log = logging.getLogger(__name__)


def beat_app(broker_url: str, *, prefix: str, every: float) -> NightmillApp:
    """The application whose beat sends a tick every so many seconds; ticks nobody took in time are dropped."""
    app = make_app(broker_url, prefix=prefix)
    app.conf.task_send_sent_event = False  # Flower shows shards, not two ticks a minute
    app.conf.beat_max_loop_interval = min(every, app.conf.beat_max_loop_interval)
    app.conf.beat_schedule = {
        "tick": {"task": TICK, "schedule": every, "options": {"queue": CONTROL_QUEUE, "expires": every}}
    }
    return app


def run_beat(settings: Settings) -> int:
    """Until SIGTERM or Ctrl-C; the exit code. Raises OwnerMissing."""
    app = beat_app(connect(settings).broker_url, prefix=settings.redis_prefix, every=settings.schedule_tick_seconds)

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(0)  # the service sleeps between two ticks, and this alone ends that

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, leave)
    log.info("beat started every=%.1f", settings.schedule_tick_seconds)
    # The scheduler in memory: there is nothing to remember, so there is no file that could be damaged.
    Service(app, scheduler_cls=Scheduler).start()
    return 0
