"""A TCP proxy between a process and its broker or database, which does to their link what networks do.

`up` is what the client sends, `down` what the server answers. Faults hold for links that are open and those to come,
except `reset` and `cut_after`, which end links that are open.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Self

UP, DOWN = "up", "down"
CHUNK = 65536
Address = str | tuple[str, int]  # a Unix socket's path, or host and port


@dataclass(eq=False, slots=True)
class Link:
    client: socket.socket
    server: socket.socket
    passed: dict[str, int] = field(default_factory=lambda: {UP: 0, DOWN: 0})  # bytes

    def reset(self) -> None:
        """RST to both sides, not FIN: what was sent and not read is lost."""
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RD)  # wakes the thread that reads
            end.close()


class Proxy:
    """`with Proxy(upstream) as proxy:` passes everything on until it is told otherwise."""

    def __init__(self, upstream: Address, host: str = "127.0.0.1") -> None:
        self.upstream = upstream
        self.delay = 0.0  # seconds that each piece waits
        self.dropped: set[str] = set()  # directions in which everything vanishes while the link stays open
        self.held = False  # half open: nothing is read, nothing closed, new links are accepted and left alone
        self.refused = False  # new links are reset at once
        self._cut: tuple[str, bytes | int] | None = None
        self._links: set[Link] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server((host, 0))
        self._stopped = False
        self.cuts = 0
        self.accepted = 0

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    # --- faults -----------------------------------------------------------------------------------------------
    def heal(self) -> None:
        """Pass everything on again. Links that lost something are reset, as time-outs would do in the end."""
        lost = bool(self.dropped) or self.held
        self.delay, self.dropped, self.held, self.refused, self._cut = 0.0, set(), False, False, None
        if lost:
            self.reset()

    def down(self) -> None:
        """As a server that is not there."""
        self.refused = True
        self.reset()

    def reset(self) -> int:
        """Reset every open link; how many there were."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.reset()
        return len(links)

    def cut_after(self, direction: str, what: bytes | int) -> None:
        """Once: reset the first link on which so many bytes have gone by, or these bytes have just been passed on."""
        self._cut = (direction, what)

    # --- work -------------------------------------------------------------------------------------------------
    def _accept(self) -> None:
        while not self._stopped:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            try:
                server = self._connect()
            except OSError:
                client.close()
                continue
            link = Link(client, server)
            if self.refused:
                link.reset()
                continue
            with self._lock:
                self._links.add(link)
            for direction, source, target in ((UP, client, server), (DOWN, server, client)):
                threading.Thread(target=self._pump, args=(link, direction, source, target), daemon=True).start()

    def _connect(self) -> socket.socket:
        if isinstance(self.upstream, tuple):
            return socket.create_connection(self.upstream, timeout=5)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.connect(self.upstream)
        except OSError:
            server.close()
            raise
        return server

    def _pump(self, link: Link, direction: str, source: socket.socket, target: socket.socket) -> None:
        try:
            source.settimeout(None)
            while piece := source.recv(CHUNK):
                while self.held and link in self._links:
                    time.sleep(0.02)
                if self.delay:
                    time.sleep(self.delay)
                if direction not in self.dropped:
                    target.sendall(piece)
                link.passed[direction] += len(piece)
                if self._is_cut(link, direction, piece):
                    break
        except OSError:
            pass  # one side has gone
        if not self.held:
            with self._lock:
                self._links.discard(link)
            link.reset()

    def _is_cut(self, link: Link, direction: str, piece: bytes) -> bool:
        with self._lock:
            if self._cut is None or self._cut[0] != direction:
                return False
            what = self._cut[1]
            if not (link.passed[direction] >= what if isinstance(what, int) else what in piece):
                return False
            self._cut = None
            self.cuts += 1
            return True
