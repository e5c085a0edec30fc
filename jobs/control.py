"""Serves the queue `control`: a message there asks for a look at the schedules. Its messages are hints, like all."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kombu.exceptions import KombuError

from jobs.app import CONTROL_QUEUE, NightmillApp, make_app
from jobs.tasks import TICK

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5  # until a stop is seen
RETRY_SECONDS = 2.0  # after the broker went away


@contextmanager
def serving_control(broker_url: str, prefix: str, wake: Callable[[], None]) -> Iterator[None]:
    """Call `wake` for every tick that comes while the block runs, in a thread of its own. An outage of the broker only
    delays them."""
    app = make_app(broker_url, prefix=prefix)
    stopping = threading.Event()
    thread = threading.Thread(target=_serve, args=(app, wake, stopping), name="control", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        app.close()


def _serve(app: NightmillApp, wake: Callable[[], None], stopping: threading.Event) -> None:
    while not stopping.is_set():
        connection = app.connection_for_read()
        broken = (*connection.connection_errors, *connection.channel_errors, KombuError, OSError)
        try:
            with connection:
                _consume(app, connection, wake, stopping)
        except broken as error:
            log.warning("control queue waits for the broker error=%s", error)
            stopping.wait(RETRY_SECONDS)


def _consume(app: NightmillApp, connection: Any, wake: Callable[[], None], stopping: threading.Event) -> None:
    def received(body: Any, message: Any) -> None:
        message.ack()  # early: the next tick comes anyway
        if message.headers.get("task") == TICK:
            wake()

    queue = app.amqp.queues[CONTROL_QUEUE]
    with connection.Consumer([queue], callbacks=[received], accept=["json"]):
        while not stopping.is_set():
            try:
                connection.drain_events(timeout=POLL_SECONDS)
            except TimeoutError:
                continue
