"""Ticks through a real broker, which may go away, come back, and hold what nobody sent on purpose."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.app import CONTROL_QUEUE, NightmillApp, make_app
from jobs.broker import PrivateBroker
from jobs.control import serving_control
from jobs.dispatch import BrokerDown
from jobs.tasks import publish_tick

pytestmark = pytest.mark.integration
PREFIX = "nightmill:"
PATIENCE = 30.0


@pytest.fixture
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    server = PrivateBroker(tmp_path_factory.mktemp("b"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def app(broker: PrivateBroker) -> Iterator[NightmillApp]:
    made = make_app(broker.url, prefix=PREFIX)
    yield made
    made.close()


def test_every_tick_wakes_and_what_is_no_tick_is_dropped(broker: PrivateBroker, app: NightmillApp) -> None:
    woken = threading.Semaphore(0)
    app.send_task("nightmill.nonsense", queue=CONTROL_QUEUE)
    publish_tick(app)

    with serving_control(broker.url, PREFIX, woken.release):
        assert woken.acquire(timeout=PATIENCE)
        publish_tick(app)
        assert woken.acquire(timeout=PATIENCE)

    with app.connection_for_read() as connection:
        assert connection.default_channel.queue_declare(queue=CONTROL_QUEUE).message_count == 0
    assert not woken.acquire(blocking=False)


def test_a_broker_that_was_away_is_served_again_and_one_that_stays_away_delays_no_stop(
    broker: PrivateBroker, app: NightmillApp, tmp_path: Path
) -> None:
    woken = threading.Semaphore(0)

    with serving_control(broker.url, PREFIX, woken.release):
        publish_tick(app)
        assert woken.acquire(timeout=PATIENCE)
        broker.stop()
        with pytest.raises(BrokerDown, match="it is done later"):
            publish_tick(app)
        broker.start()
        publish_tick(make_app(broker.url, prefix=PREFIX))
        assert woken.acquire(timeout=PATIENCE)
        broker.stop()
        stopped = time.monotonic()

    assert time.monotonic() - stopped < 20.0
