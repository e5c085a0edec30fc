"""Tell a webhook how a run of a data set ended: one signed POST, tried again for seconds, never an error of the night.

    Nightmill-Event: success
    Nightmill-Delivery: 5f0c…                        equal for equal events, so that a receiver can drop repeats
    Nightmill-Signature: t=1795777200,v1=9a41…       HMAC-SHA256, hex, over "<t>." and the body, keyed with the secret

The secret is read from the environment variable that the terms name, at the moment of sending, and kept nowhere. What
is answered is not read, redirects are not followed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException, InvalidURL
from typing import Any, Literal
from urllib.parse import urlsplit

from tenacity import RetryError, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from jobs.datasets.terms import DatasetTerms
from jobs.settings import Settings

log = logging.getLogger(__name__)

Event = Literal["success", "failure", "missed"]
MAY_PASS = frozenset({408, 425, 429})
"""Answers below 500 after which the same request may be taken."""


def send(
    terms: DatasetTerms,
    event: Event,
    body: Mapping[str, Any],
    *,
    settings: Settings | None = None,
    clock: Callable[[], float] = time.time,
) -> str | None:
    """POST the event, if the terms name a webhook. None: it was taken; else why not, without the address, which the log
    tells as well. Never raises for anything that the receiver, the network or the secret's variable does."""
    if terms.webhook_url is None:
        return None
    host = urlsplit(terms.webhook_url).hostname  # a path may hold a token
    secret = os.environ.get(terms.webhook_secret_env or "")
    if not secret:
        log.error("webhook not sent host=%s event=%s: %s is not set", host, event, terms.webhook_secret_env)
        return f"the variable {terms.webhook_secret_env} is not set"
    content = json.dumps({"event": event, **body}, sort_keys=True, ensure_ascii=False, default=str).encode()
    patience = Settings() if settings is None else settings
    tries = Retrying(
        retry=retry_if_exception(_may_pass),
        stop=stop_after_attempt(patience.webhook_tries),
        wait=wait_exponential(multiplier=patience.webhook_pause_seconds),
    )
    try:
        tries(_post, terms.webhook_url, event, content, secret, patience.webhook_timeout_seconds, clock)
    except (RetryError, OSError, HTTPException, ValueError) as error:  # the last: an address that cannot be one
        cause = error.last_attempt.exception() if isinstance(error, RetryError) else error
        log.error("webhook not taken host=%s event=%s error=%s", host, event, _said(cause))
        return _said(cause)
    log.info("webhook sent host=%s event=%s", host, event)
    return None


def sign(secret: str, at: int, content: bytes) -> str:
    """The value of `Nightmill-Signature`."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + content, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def _post(url: str, event: Event, content: bytes, secret: str, timeout: float, clock: Callable[[], float]) -> None:
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "nightmill",
        "Nightmill-Event": event,
        "Nightmill-Delivery": hashlib.sha256(content).hexdigest()[:32],
        "Nightmill-Signature": sign(secret, int(clock()), content),
    }
    request = urllib.request.Request(url, content, headers, method="POST")
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout):
        pass


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """A redirect is an answer like any other that is not 2xx: signed news go where they were sent to."""


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return error.code >= 500 or error.code in MAY_PASS
    return isinstance(error, (OSError, HTTPException))


def _said(error: BaseException | None) -> str:
    """Why, without the address."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, (ValueError, InvalidURL)):  # whose text quotes it
        return "its address cannot be one"
    return str(getattr(error, "reason", None) or error or type(error).__name__)
