"""Token ids to text: the whole text of a finished sequence, and stop strings while it grows.

The text of a sequence is `decode(ids)`. A token may hold a part of a character, so text is settled only up to the
last whole character:  | settled text | pending ids, their text may still change |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from engine.request import StopCheck

REPLACEMENT = "\ufffd"  # what a decoder writes for a character that is not whole (yet)

# Ids that wait for a whole character. A character has at most four bytes, so more pending ids than that are damaged
# text; they are let go where the split does not show, and at the second limit wherever they are.
PENDING = 16
PENDING_AT_MOST = 256


class Decoder(Protocol):
    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of these ids, special tokens left out."""


def make_stop_check(decoder: Decoder, stops: Sequence[str]) -> Callable[[], StopCheck] | None:
    """Builds predicates, one for each sequence, that are true at the first id after which the text contains a stop
    string. None when there are no stop strings."""
    if not stops:
        return None
    wanted = tuple(stops)
    return lambda: StopScanner(decoder, wanted)


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, and that stop string.

    "Complete first" does not depend on how the text was cut into tokens; of two that end together the longer counts.
    """
    found = [(at + len(stop), at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not found:
        return text, None
    _, at, stop = min(found)
    return text[:at], stop


def finish_text(decoder: Decoder, token_ids: Sequence[int], stops: Sequence[str]) -> tuple[str, str | None]:
    """The text of a finished sequence, cut at its stop string: (text, stop_reason)."""
    return cut_at_stop(decoder.decode(token_ids), stops)


class StopScanner:
    """Called with each new id of one sequence. Keeps a few ids and a few characters: the cost of an id is constant.

    | settled ids | before | pending |    `before` gives the decoder context, so that the text of
                  ^        ^              `pending` is decode(before + pending) without decode(before)
    """

    def __init__(self, decoder: Decoder, stops: tuple[str, ...]) -> None:
        self._decoder = decoder
        self._stops = stops
        self._tail_len = max(len(stop) for stop in stops) - 1  # characters of settled text that a stop may begin in
        self._tail = ""
        self._before: list[int] = []
        self._before_text = ""
        self._pending: list[int] = []

    def __call__(self, token_id: int) -> bool:
        self._pending.append(token_id)
        text = self._decoder.decode(self._before + self._pending)
        fresh = text[len(self._before_text) :]
        seen = self._tail + fresh
        if any(stop in seen for stop in self._stops):
            return True
        if fresh and not fresh.endswith(REPLACEMENT):
            self._settle(len(self._pending), fresh)
        elif len(self._pending) > PENDING:
            self._let_go(text, fresh)
        return False

    def _settle(self, num_ids: int, fresh: str) -> None:
        self._keep_tail(fresh)
        # A blank context would lose its blank at the start of a decode in some tokenizers: keep what came before it.
        settled = self._pending[:num_ids]
        if fresh.isspace() and len(self._before) <= PENDING:
            settled = self._before + settled
        self._before = settled
        self._before_text = self._decoder.decode(settled)
        self._pending = self._pending[num_ids:]

    def _let_go(self, text: str, fresh: str) -> None:
        ids = self._before + self._pending
        for kept in range(4, PENDING):
            split = len(ids) - kept
            head, rest = self._decoder.decode(ids[:split]), self._decoder.decode(ids[split:])
            if head + rest == text and len(head) >= len(self._before_text):
                break
        else:
            if len(self._pending) <= PENDING_AT_MOST:
                return
            rest = self._decoder.decode(ids[-PENDING:])
            split = len(ids) - PENDING
        self._keep_tail(fresh[: len(fresh) - len(rest)])
        self._before, self._before_text, self._pending = [], "", ids[split:]

    def _keep_tail(self, fresh: str) -> None:
        self._tail = (self._tail + fresh)[-self._tail_len :] if self._tail_len else ""
