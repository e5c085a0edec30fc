"""The proxy does to a link what it is told, and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.faults.harness import wait_for
from tests.faults.proxy import DOWN, UP, Proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """In front of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            while piece := client.recv(1000):
                client.sendall(piece)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    with Proxy(listener.getsockname()) as proxy:
        yield proxy
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def say(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return client.recv(1000)


def is_gone(client: socket.socket) -> bool:
    """Whether the other side has ended the link: seen at the first or the second word."""
    try:
        return not (say(client, b"hello") and say(client, b"hello"))
    except ConnectionError:
        return True


def refuses(proxy: Proxy) -> bool:
    try:
        with connect(proxy) as client:
            return is_gone(client)
    except ConnectionError:
        return True


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=0.3)


def test_what_is_sent_comes_back(proxy: Proxy) -> None:
    with connect(proxy) as client:
        answer = say(client, b"hello")

    assert answer == b"hello"


@pytest.mark.parametrize("direction", [UP, DOWN])
def test_a_direction_that_is_dropped_is_silent_while_the_link_stays_open(proxy: Proxy, direction: str) -> None:
    with connect(proxy) as client:
        proxy.dropped = {direction}

        with pytest.raises(TimeoutError):
            say(client, b"hello")

        proxy.dropped = set()
        assert say(client, b"again") == b"again"


def test_a_half_open_link_answers_nothing_and_takes_new_ones(proxy: Proxy) -> None:
    with connect(proxy) as client:
        proxy.held = True

        with connect(proxy) as late:
            for silent in (client, late):
                with pytest.raises(TimeoutError):
                    say(silent, b"hello")

        proxy.heal()
        assert is_gone(client)


def test_a_reset_is_seen_at_once_and_a_new_link_works(proxy: Proxy) -> None:
    with connect(proxy) as client:
        say(client, b"hello")

        assert proxy.reset() == 1

        assert is_gone(client)
    with connect(proxy) as client:
        assert say(client, b"again") == b"again"


def test_a_server_that_is_down_refuses_until_it_is_up(proxy: Proxy) -> None:
    proxy.down()

    assert refuses(proxy)

    proxy.heal()
    with connect(proxy) as client:
        assert say(client, b"again") == b"again"


@pytest.mark.parametrize("what", [4, b"COMMIT"])
def test_a_link_is_cut_once_when_its_bytes_have_gone_by(proxy: Proxy, what: bytes | int) -> None:
    with connect(proxy) as client:
        proxy.cut_after(UP, what)

        with contextlib.suppress(OSError):
            say(client, b"COMMIT")

        wait_for(lambda: proxy.cuts == 1, "the link is cut")
    with connect(proxy) as client:
        assert say(client, b"COMMIT") == b"COMMIT"
