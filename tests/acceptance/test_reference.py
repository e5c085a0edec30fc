"""What counts as the text of `generate`: its own, or another choice at a tie and then its own again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.reference import Reference

pytestmark = pytest.mark.models
PROMPT = "The capital of France is"


def test_only_what_generate_gives_after_a_tie_agrees(demo_model: Callable[[str], Path]) -> None:
    folder = demo_model("smollm2-135m")
    strict = Reference(folder, tie=0.0).raw(PROMPT, 6)
    assert not strict.branches
    expected = Reference(folder, tie=2.0).raw(PROMPT, 6)  # so wide that there are ties
    other = next(each for branch in expected.branches if (each := branch.follow()).text != expected.text)

    assert expected.agrees_with(strict.text, strict.num_tokens, strict.ended)
    assert expected.agrees_with(other.text, other.num_tokens, other.ended)
    assert not strict.agrees_with(other.text, other.num_tokens, other.ended)
    assert not expected.agrees_with(other.text + "!", other.num_tokens, other.ended)
    assert not expected.agrees_with(other.text, other.num_tokens - 1, other.ended)
