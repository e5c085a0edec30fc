"""Planned rows where memory is enough: each starts exactly where the plan says, in every kind of model."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.groups import LayerGroup
from engine.step import Sampled, Step
from tests.unit.engine.contents import ready
from tests.unit.engine.fake_runner import VOCAB, reference
from tests.unit.engine.harness import Harness, request, total
from tests.unit.engine.planned import LAYOUTS, THREE_KINDS, TWO_FULL, WITH_STATES, Prompts, planned, plans, tree_bound

every_layout = pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS.keys())
layouts_with_states = pytest.mark.parametrize("groups", WITH_STATES.values(), ids=WITH_STATES.keys())


def with_tails(prefix_len: int, count: int) -> list[list[int]]:
    return [[*range(prefix_len), 100 + number, 1, 2] for number in range(count)]


def assert_right(harness: Harness, prompts: Prompts, max_tokens: int = 4) -> None:
    for item in harness.completions:
        prompt = prompts[int(item.request_id)]
        assert item.token_ids == reference(prompt, max_tokens, sample_index=item.sample_index)


def cached(harness: Harness) -> list[int]:
    """Per row, in their order."""
    firsts = sorted((int(item.request_id), item) for item in harness.completions if item.sample_index == 0)
    return [item.counters.cached_tokens for _, item in firsts]


# Tokens that the fake runner never generates: what rows generate is cached as well, and would save prompts their own.
TOKENS = st.integers(VOCAB, VOCAB + 1)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(TOKENS, min_size=1, max_size=20), min_size=1, max_size=10), st.integers(1, 3))
@every_layout
def test_with_enough_memory_a_job_computes_the_edges_of_its_prefix_tree(
    groups: tuple[LayerGroup, ...], prompts: Prompts, num_samples: int
) -> None:
    prompts = sorted(prompts)
    harness = Harness(groups, num_blocks=400, max_batch_tokens=7, max_sequences=4)

    harness.run(*planned(prompts, num_samples=num_samples))

    assert_right(harness, prompts)
    counters = total(harness)
    assert counters.computed_tokens == tree_bound(prompts)
    assert counters.cached_tokens == counters.planned_tokens
    assert (counters.forked_tokens, counters.recomputed_tokens, counters.limited_by) == (0, 0, ())


@every_layout
def test_rows_of_the_first_batch_compute_their_prefix_once(groups: tuple[LayerGroup, ...]) -> None:
    prompts = with_tails(13, 8)
    harness = Harness(groups, max_batch_tokens=200, max_sequences=8)

    harness.run(*planned(prompts))

    assert total(harness).computed_tokens == 13 + 8 * 3
    assert_right(harness, prompts)


@every_layout
@pytest.mark.parametrize("length", [2, 3, 5, 9, 17, 32])
def test_the_same_prompt_twice_runs_its_last_token_again(groups: tuple[LayerGroup, ...], length: int) -> None:
    """Also one that is shorter than a block, in a model that takes no longer ones."""
    prompts = [[7] * length] * 2
    harness = Harness(groups, max_model_len=length + 4)

    harness.run(*planned(prompts))

    assert cached(harness) == [0, length - 1]
    assert_right(harness, prompts)


@every_layout
@pytest.mark.parametrize("max_batch_tokens", [1, 3, 4, 7, 50])
def test_unique_tails_start_where_the_prefix_ends_wherever_the_chunks_do(
    groups: tuple[LayerGroup, ...], max_batch_tokens: int
) -> None:
    prompts = with_tails(11, 3)
    harness = Harness(groups, max_batch_tokens=max_batch_tokens)

    harness.run(*planned(prompts))

    assert cached(harness) == [0, 11, 11]
    assert_right(harness, prompts)


@every_layout
def test_where_a_row_starts_depends_neither_on_the_budget_nor_on_its_neighbours(groups: tuple[LayerGroup, ...]) -> None:
    rng = random.Random(3)
    prompts = sorted([VOCAB + rng.randrange(2) for _ in range(rng.randint(1, 24))] for _ in range(12))
    expected = [plan.planned_tokens for plan in plans(prompts)]

    for max_batch_tokens, max_sequences in [(1, 1), (5, 3), (64, 1), (64, 12)]:
        harness = Harness(groups, max_batch_tokens=max_batch_tokens, max_sequences=max_sequences)
        others = [request(str(number), [50 + number] * 9, 20) for number in range(100, 103)]
        harness.run(*others, *planned(prompts))

        assert cached(harness)[: len(prompts)] == expected


@every_layout
@pytest.mark.parametrize("num_samples", [1, 3])
def test_one_token_is_left_over_after_a_hit_and_prompts_of_one_token_fork(
    groups: tuple[LayerGroup, ...], num_samples: int
) -> None:
    prompts = [[8], [5], [5], [5, 6], [5, 6], [*range(20, 37)], [*range(20, 37)], [*range(20, 36), 9]]
    harness = Harness(groups, max_sequences=4)

    done = harness.run(*planned(prompts, num_samples=num_samples))

    assert len(done) == len(prompts) * num_samples
    assert_right(harness, prompts)
    assert cached(harness) == [0, 0, 0, 1, 1, 0, 16, 16]
    assert total(harness).forked_tokens == 0


# --- states and what is kept of them --------------------------------------------------------------------------


@layouts_with_states
def test_no_state_is_read_in_the_step_that_makes_it_and_others_start_meanwhile(groups: tuple[LayerGroup, ...]) -> None:
    harness = Harness(groups, max_batch_tokens=100)
    steps: list[Step] = []
    watch(harness, steps.append)

    harness.run(*planned(with_tails(10, 3)), request("other", [9, 9, 9]))

    first, second, *_ = steps
    assert [(chunk.sequence_id, chunk.start, chunk.length) for chunk in first.chunks] == [(0, 0, 10), (3, 0, 3)]
    assert not first.copies
    starts = {chunk.sequence_id: chunk.start for chunk in second.chunks}
    assert starts == {0: 10, 1: 10, 2: 10, 3: 3}
    assert second.copies


def watch(harness: Harness, look: Callable[[Step], None]) -> None:
    """Show each step as the runner gets it."""
    run = harness.runner.run

    def shown(step: Step) -> list[Sampled]:
        look(step)
        return run(step)

    harness.runner.run = shown  # type: ignore[method-assign]


@layouts_with_states
@pytest.mark.parametrize("with_plan", [True, False])
def test_unique_prompts_keep_no_checkpoints_and_take_as_many_steps_as_without_sharing(
    groups: tuple[LayerGroup, ...], with_plan: bool
) -> None:
    prompts = [[number] * (10 + number) for number in range(12)]
    requests = planned(prompts) if with_plan else [request(str(n), prompt, 4) for n, prompt in enumerate(prompts)]
    plain = Harness(groups, max_batch_tokens=16, allow_block_sharing=False)
    plain.run(*requests)
    harness = Harness(groups, max_batch_tokens=16)

    def look(step: Step) -> None:
        assert not step.copies
        assert not ready(harness.cache)

    watch(harness, look)
    harness.run(*requests)

    assert harness.runner.num_steps == plain.runner.num_steps
    assert total(harness).computed_tokens == sum(len(prompt) for prompt in prompts)


@pytest.mark.parametrize("groups", [THREE_KINDS, TWO_FULL], ids=["three kinds", "two full"])
def test_blocks_and_slots_are_counted_in_the_unit_of_their_own_group(groups: tuple[LayerGroup, ...]) -> None:
    """Every group has another number of blocks, so an index in the unit of another one shows."""
    sizes = [{0: 7, 2: 70, 4: 30, 6: 11, 8: 9}[item.block_size] for item in groups]
    sizes[-1] = 6
    prompts = sorted([*range(length), 50 + length, *range(tail)] for length in (3, 6, 7, 12, 16) for tail in (1, 8))
    harness = Harness(groups, num_blocks=sizes, max_batch_tokens=9, max_sequences=3)
    num_copies = 0

    def look(step: Step) -> None:
        nonlocal num_copies
        num_copies += len(step.copies)
        assert all(max(copy.source, copy.target) < sizes[copy.group] for copy in step.copies)
        for chunk in step.chunks:
            assert all(max(table) < size for table, size in zip(chunk.tables, sizes, strict=True))

    watch(harness, look)
    harness.run(*planned(prompts))

    assert num_copies > 0
    assert len(harness.completions) == len(prompts)
    assert_right(harness, prompts)
