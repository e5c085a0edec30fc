"""Planned rows and their samples in a cache that has room for little more than one of them."""

from __future__ import annotations

import random

import pytest

from engine.cache.groups import LayerGroup
from engine.request import Request
from tests.unit.engine.fake_runner import reference
from tests.unit.engine.harness import Harness, group
from tests.unit.engine.planned import LAYOUTS, planned

SEEDS = (0, 1, 4, 6, 8, 9, 11)  # some of them preempt, in every kind of model that can
every_layout = pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS.keys())


def crowd(groups: tuple[LayerGroup, ...], seed: int, spare: int | None = None) -> tuple[Harness, list[Request]]:
    """Rows of few different tokens, so that they have much in common, and room for the longest and `spare` blocks.

    Of state slots there are twice as many to spare.
    """
    rng = random.Random(seed)
    prompts = [tuple(rng.randrange(2) for _ in range(rng.randint(1, 20))) for _ in range(rng.randint(3, 9))]
    if seed % 2:
        prompts.sort()
    requests = planned(prompts, rng.choice([1, 9, 24]), num_samples=rng.choice([1, 1, 3]))
    max_batch_tokens = rng.choice([2, 5, 16])
    longest = max(len(item.prompt) + item.sampling.max_tokens - 1 for item in requests)
    spare = rng.choice([0, 1, 2]) if spare is None else spare
    harness = Harness(
        groups,
        num_blocks=[
            1 + item.peak_blocks(longest, max_batch_tokens) + spare if item.has_blocks else 2 + 2 * spare
            for item in groups
        ],
        max_batch_tokens=max_batch_tokens,
        max_sequences=rng.choice([1, 8, 8]),
    )
    # Expecting too little output is what leads to preemptions.
    harness.scheduler._admission._output_ratio = rng.choice([0.0, 0.0, 1.0])
    return harness, requests


def is_open(harness: Harness) -> bool:
    return bool(harness.scheduler.num_running + harness.scheduler.num_waiting)


def assert_finished_right(harness: Harness, requests: list[Request]) -> None:
    done = {(item.request_id, item.sample_index): item for item in harness.completions}
    assert len(done) == sum(item.sampling.num_samples for item in requests)
    for item in requests:
        for sample in range(item.sampling.num_samples):
            expected = reference(item.prompt, item.sampling.max_tokens, sample_index=sample)
            assert done[item.request_id, sample].token_ids == expected


@every_layout
def test_every_admitted_request_finishes_at_exact_pool_sizes(groups: tuple[LayerGroup, ...]) -> None:
    """The harness and its runner look at each step: it has tokens, and no chunk of it is empty."""
    for seed in SEEDS:
        harness, requests = crowd(groups, seed, spare=0)

        harness.run(*requests)

        assert_finished_right(harness, requests)


def test_what_several_checkpoints_hold_together_is_given_up_for_the_only_sequence_that_runs() -> None:
    """A junction and the start of a fork at one place hold the same block, so that neither alone would free it."""
    window = group(0, window=6)
    harness = Harness((window,), num_blocks=1 + window.peak_blocks(15, 1), max_batch_tokens=1)
    forked, *others = planned([(0, 0, 0, 0), (0, 0, 0, 0, 1), (0, 0, 0, 0, 2)], 12, num_samples=3)

    harness.run(forked, *others)

    assert_finished_right(harness, [forked, *others])
