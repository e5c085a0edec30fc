"""A webhook is told once, signed and patiently, and whatever it does, the night goes on."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from jobs.datasets import webhook
from jobs.datasets.terms import DatasetTerms
from jobs.settings import Settings

pytestmark = pytest.mark.integration
SECRET = "correct horse battery staple"
QUICK = Settings(webhook_timeout_seconds=5, webhook_tries=3, webhook_pause_seconds=0.001)


@dataclass
class Receiver:
    """What came in, and what is answered: the statuses in their order, the last one for ever."""

    answers: list[int]
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@contextmanager
def receiving(*answers: int) -> Iterator[Receiver]:
    receiver = Receiver(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            receiver.headers.append(dict(self.headers))
            status = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.url = f"http://127.0.0.1:{server.server_port}/hook/token-in-path"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)


def terms_for(url: str, variable: str = "HOOK_SECRET") -> DatasetTerms:
    return DatasetTerms(webhook_url=url, webhook_secret_env=variable)


def test_the_receiver_can_check_who_sent_it_and_when() -> None:
    with receiving(204) as receiver:
        why = webhook.send(terms_for(receiver.url), "missed", {"label": "2026-11-27"}, clock=lambda: 1795777200.9)

    headers, (content,) = receiver.headers[0], receiver.bodies
    moment, given = (pair.split("=")[1] for pair in headers["Nightmill-Signature"].split(","))
    wanted = hmac.new(SECRET.encode(), f"{moment}.".encode() + content, hashlib.sha256).hexdigest()
    assert why is None
    assert (moment, given) == ("1795777200", wanted)
    assert headers["Nightmill-Event"] == "missed"
    assert json.loads(content) == {"event": "missed", "label": "2026-11-27"}


def test_an_answer_that_may_pass_is_tried_again_as_the_same_delivery() -> None:
    with receiving(503, 429, 200) as receiver:
        why = webhook.send(terms_for(receiver.url), "success", {"run": "1"}, settings=QUICK)

    assert why is None
    assert len(receiver.bodies) == 3
    assert len({headers["Nightmill-Delivery"] for headers in receiver.headers}) == 1


@pytest.mark.parametrize(("status", "tries"), [(500, 3), (404, 1), (302, 1)])
def test_a_receiver_that_does_not_take_it_is_left_alone_at_last(
    status: int, tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    with receiving(status) as receiver, caplog.at_level(logging.INFO):
        why = webhook.send(terms_for(receiver.url), "failure", {}, settings=QUICK)

    assert why == f"HTTP {status}"
    assert len(receiver.bodies) == tries
    assert f"HTTP {status}" in caplog.text
    assert SECRET not in caplog.text
    assert "token-in-path" not in caplog.text


def test_a_receiver_out_of_reach_is_told_in_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    why = webhook.send(terms_for("http://127.0.0.1:9/hook"), "failure", {}, settings=QUICK)

    assert "refused" in (why or "")
    assert "webhook not taken host=127.0.0.1" in caplog.text


def test_an_address_that_cannot_be_one_is_told_without_it(caplog: pytest.LogCaptureFixture) -> None:
    why = webhook.send(terms_for("http://127.0.0.1:9/token-in-path\x7f"), "failure", {}, settings=QUICK)

    assert why == "its address cannot be one"
    assert "token-in-path" not in caplog.text


def test_without_its_secret_nothing_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    with receiving(200) as receiver:
        why = webhook.send(terms_for(receiver.url, "NO_SUCH_VARIABLE"), "success", {})

    assert why == "the variable NO_SUCH_VARIABLE is not set"
    assert receiver.bodies == []
    assert "NO_SUCH_VARIABLE is not set" in caplog.text


def test_without_a_webhook_nobody_is_told() -> None:
    assert webhook.send(DatasetTerms(), "success", {}) is None
