"""The real Flower on this installation's broker: on the loopback address, and read-only."""

from __future__ import annotations

import signal
import sys
from typing import Any

from flower import command, urls
from flower.app import Flower
from flower.options import options

from jobs.app import make_app
from jobs.monitor.tasks import COLUMNS, format_task

ADDRESS = "127.0.0.1"  # its pages show arguments and results to everyone who can reach them


def run_flower(broker_url: str, *, prefix: str, port: int) -> int:
    """Serve until SIGTERM or Ctrl-C. Port 0 takes a free one; the address is printed on stderr.

    Flower keeps what it saw in memory only: it is a live view, the database is the record.
    """
    server = build(broker_url, prefix=prefix, port=port)
    bound = server.start_http_server()
    signal.signal(signal.SIGTERM, lambda *_: server.io_loop.add_callback_from_signal(server.stop))
    sys.stderr.write(f"Flower shows the shards at http://{ADDRESS}:{bound} (read-only; Ctrl-C stops it)\n")
    sys.stderr.flush()
    try:
        server.start()
    except KeyboardInterrupt:
        server.stop()
    return 0


def build(broker_url: str, *, prefix: str, port: int) -> Any:
    """Flower with our options; opens no port yet. Flower's options are global, so one process serves one Flower."""
    settings: dict[str, Any] = {
        "address": ADDRESS,
        "port": port,
        "read_only": True,
        "persistent": False,
        "format_task": format_task,
        "tasks_columns": COLUMNS,
    }
    for name, value in settings.items():
        setattr(options, name, value)
    command.extract_settings()
    command.setup_logging()
    return Flower(capp=make_app(broker_url, prefix=prefix), options=options, **urls.settings)
