"""How the engine's tokens are held to `generate`: equal, or another choice at a tie and then equal again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.equivalence import tiny

NEW_TOKENS = 6


@pytest.fixture(scope="module")
def tied(tiny_model: Callable[[str], Path]) -> tuple[tiny.Expected, tuple[int, ...]]:
    """An answer whose second token is as good as another, and the answer that goes on from that other one."""
    source = tiny_model("llama")
    (expected,) = tiny.generate(source, tiny.prompts([9]), NEW_TOKENS)
    logits = expected.logits.clone()
    want, have = (int(token) for token in logits[1].topk(2).indices)
    logits[1, have] = logits[1, want] - tiny.TIE / 2
    other = (expected.tokens[0], have)
    (rest,) = tiny.generate(source, [(*expected.prompt, *other)], NEW_TOKENS - 2)
    return replace(expected, logits=logits), (*other, *rest.tokens)


def test_the_expected_tokens_are_right(tied: tuple[tiny.Expected, tuple[int, ...]]) -> None:
    expected, _ = tied

    assert expected.explain_difference(expected.tokens) is None
    assert "expected" in (expected.explain_difference(expected.tokens[:-1]) or "")


def test_what_generate_gives_after_the_other_choice_at_a_tie_is_right(
    tied: tuple[tiny.Expected, tuple[int, ...]],
) -> None:
    expected, other = tied

    assert other != expected.tokens
    assert expected.explain_difference(other) is None


@pytest.mark.parametrize("at", range(2, NEW_TOKENS))
def test_anything_else_after_a_tie_is_wrong(at: int, tied: tuple[tiny.Expected, tuple[int, ...]]) -> None:
    expected, other = tied
    wrong = (*other[:at], (other[at] + 1) % tiny.VOCAB_SIZE, *other[at + 1 :])

    assert f"after the tie at token 1: token {at - 2} is" in (expected.explain_difference(wrong) or "")


def test_an_answer_that_ends_early_after_a_tie_is_wrong(tied: tuple[tiny.Expected, tuple[int, ...]]) -> None:
    expected, other = tied

    for length in range(2, NEW_TOKENS):
        assert "tokens, expected" in (expected.explain_difference(other[:length]) or "")
