"""Whether the broker can be reached, asked the way in which hints are sent."""

from __future__ import annotations

from kombu import Connection
from kombu.exceptions import OperationalError

from jobs.app import make_app
from jobs.dispatch import BrokerDown


def require_broker(broker_url: str) -> None:
    """Return when the broker answers. Raises BrokerDown; the message has the address without its password."""
    connection: Connection = make_app(broker_url).connection_for_write()
    shown = connection.as_uri()
    try:
        with connection:
            connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=connection.connect_timeout)
            connection.default_channel.client.ping()
    except (OperationalError, OSError, ValueError, KeyError, *connection.connection_errors) as error:
        raise BrokerDown(f"the broker {shown} cannot be reached: {error}; check that it runs and try again") from error


def broker_answers(broker_url: str) -> bool:
    try:
        require_broker(broker_url)
    except BrokerDown:
        return False
    return True
