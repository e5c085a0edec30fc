"""Tell a webhook how a run of a data set ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from jobs.datasets.terms import DatasetTerms

Event = Literal["success", "failure", "missed"]


def send(terms: DatasetTerms, event: Event, body: Mapping[str, Any]) -> None:
    """POST the event, signed, if the terms name a webhook. Never raises for a receiver that cannot be reached."""
    if terms.webhook_url is not None:
        raise NotImplementedError
