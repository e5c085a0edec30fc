"""Every prompt token is cached or computed, once; what runs a second time is recomputed."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.manager import SequenceBlocks
from engine.sequence import End, Sequence
from engine.step import Sampled
from tests.unit.engine.harness import request


def sequence(prompt_len: int, sample_index: int = 0) -> Sequence:
    item = request("a", range(prompt_len))
    return Sequence(0, item, sample_index, SequenceBlocks("job", 1), None, frozenset())


def counts(seq: Sequence) -> tuple[int, int, int]:
    return seq.cached_tokens, seq.computed_tokens, seq.recomputed_tokens


def test_a_hit_is_cached_and_the_rest_computed() -> None:
    seq = sequence(20)

    seq.start_at(8)
    seq.advance(12)

    assert counts(seq) == (8, 12, 0)


def test_finding_the_same_prefix_again_after_a_preemption_is_no_second_hit() -> None:
    seq = sequence(20)

    seq.start_at(8)
    seq.preempt()
    seq.start_at(8)

    assert counts(seq) == (8, 0, 0)


def test_tokens_that_run_a_second_time_are_recomputed() -> None:
    seq = sequence(20)

    seq.start_at(4)
    seq.advance(12)
    seq.preempt()
    seq.start_at(8)
    seq.advance(12)

    assert counts(seq) == (4, 16, 8)


def test_what_others_computed_in_the_meantime_counts_as_cached() -> None:
    seq = sequence(20)

    seq.start_at(0)
    seq.advance(8)
    seq.preempt()
    seq.start_at(16)
    seq.advance(4)

    assert counts(seq) == (8, 12, 0)


def test_generated_tokens_are_no_prompt_tokens_when_they_run_again() -> None:
    seq = sequence(4)

    seq.start_at(0)
    seq.advance(4)
    for token in (5, 6):
        assert seq.accept(Sampled(0, token, 0.0)) is None
        seq.advance(1)
    seq.preempt()
    seq.start_at(0)
    seq.advance(6)

    assert counts(seq) == (0, 4, 6)


def test_a_further_sample_counts_its_prompt_as_forked() -> None:
    seq = sequence(20, sample_index=1)

    seq.start_at(16)
    seq.advance(4)

    counters = seq.completion(End("length")).counters
    assert (counters.prompt_tokens, counters.cached_tokens, counters.computed_tokens) == (0, 0, 0)
    assert counters.forked_tokens == 4


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.lists(st.integers(1, 6), max_size=5)), max_size=6))
def test_prompt_tokens_add_up_after_any_preemptions(lives: list[tuple[int, list[int]]]) -> None:
    seq = sequence(20)

    for hit, chunks in [*lives, (0, [20])]:
        seq.start_at(hit)
        for chunk in chunks:
            seq.advance(min(chunk, 20 - seq.computed))
        assert seq.cached_tokens + seq.computed_tokens == seq.seen
        seq.preempt()

    assert seq.cached_tokens + seq.computed_tokens == 20
