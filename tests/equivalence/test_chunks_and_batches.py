"""How a prompt is cut into chunks, and who else is in the batch, changes no token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.equivalence import tiny
from tests.equivalence.families import FAMILIES
from tests.equivalence.subjects import CONFIG, LENGTHS, SHARED, SubjectOf, assert_expected, complete, requests

NEW_TOKENS = 8
BATCH = 64


@pytest.mark.parametrize("chunk", [1, 7, 64, 512])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_size_of_chunks_changes_no_token(family: str, chunk: int, subject: SubjectOf) -> None:
    prompts = tiny.prompts(LENGTHS[:3], SHARED)
    expected = tiny.generate(subject(family).source, prompts, NEW_TOKENS)
    engine = subject(family).engine(replace(CONFIG, max_batch_tokens=chunk))
    engine.start()

    together = complete(engine, requests(prompts, max_tokens=NEW_TOKENS))
    alone = complete(engine, requests(prompts[-1:], max_tokens=NEW_TOKENS))
    engine.stop()

    assert_expected(expected, together)
    assert_expected(expected[-1:], alone)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_batch_of_mixed_lengths_changes_no_token(family: str, subject: SubjectOf) -> None:
    """Lengths from 1 to 64, below and above the window; some prompts begin with the same tokens."""
    prompts = [*tiny.prompts(range(1, 1 + BATCH // 2)), *tiny.prompts(range(33, 33 + BATCH // 2), shared=21)]
    assert len(prompts) == BATCH
    expected = tiny.generate(subject(family).source, prompts, NEW_TOKENS)
    engine = subject(family).engine(
        replace(CONFIG, max_sequences=BATCH, max_batch_tokens=512, num_blocks=2000, num_state_slots=2 * BATCH)
    )
    engine.start()

    completions = complete(engine, requests(prompts, max_tokens=NEW_TOKENS))
    engine.stop()

    assert_expected(expected, completions)
    assert engine.totals().mean_sequences > BATCH / 2
