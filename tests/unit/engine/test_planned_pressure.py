"""Planned rows and their samples in a cache that has room for little more than one of them."""

from __future__ import annotations

import random

import pytest

from engine.cache.groups import LayerGroup
from engine.cache.manager import KVCache
from engine.cache.pool import BlockPool
from engine.cache.tables import Rank
from engine.request import Request
from engine.scheduler import Scheduler
from engine.sequence import Sequence
from engine.step import NULL_BLOCK, Step
from tests.unit.engine.contents import check_checkpoints, longest_start, ready
from tests.unit.engine.fake_runner import reference
from tests.unit.engine.harness import Harness, group, total
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
def test_whatever_a_checkpoint_holds_is_that_of_its_position(groups: tuple[LayerGroup, ...]) -> None:
    num_read = num_preempted = num_samples = 0

    for seed in SEEDS:
        harness, requests = crowd(groups, seed)
        for item in requests:
            harness.scheduler.submit(item)
        while is_open(harness):
            harness.step()
            num_read += check_checkpoints(harness)

        assert_finished_right(harness, requests)
        num_preempted += total(harness).preemptions
        num_samples += len(harness.completions) - len(requests)

    assert num_read > 50
    assert num_samples > 0
    assert num_preempted > 0 or all(item.kind != "full" for item in groups), "only full attention outgrows its room"


@every_layout
def test_the_hit_is_the_longest_start_that_is_valid_by_brute_force(
    groups: tuple[LayerGroup, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hits: list[int] = []
    find = KVCache.find

    def checked(cache, tokens, seq):  # type: ignore[no-untyped-def]
        hit = find(cache, tokens, seq)
        assert hit.length == longest_start(cache, tokens, seq)
        hits.append(hit.length)
        return hit

    monkeypatch.setattr(KVCache, "find", checked)
    for seed in SEEDS:
        harness, requests = crowd(groups, seed)
        harness.run(*requests)

    assert len({*hits}) > 5


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


@every_layout
def test_a_preemption_frees_what_the_step_goes_on_with(
    groups: tuple[LayerGroup, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    preempted: list[Sequence] = []
    preempt = Scheduler._preempt
    monkeypatch.setattr(Scheduler, "_preempt", lambda scheduler, seq: preempted.append(seq) or preempt(scheduler, seq))
    for seed in SEEDS:
        harness, requests = crowd(groups, seed)
        for item in requests:
            harness.scheduler.submit(item)
        while is_open(harness):
            oldest = next(iter(harness.scheduler._running), None)
            preempted.clear()
            step = harness.scheduler.schedule()
            assert step is not None

            assert len({seq.id for seq in preempted}) == len(preempted), "one was let in again and preempted again"
            if preempted:
                assert oldest in {chunk.sequence_id for chunk in step.chunks}
            harness.scheduler.update(step, harness.runner.run(step), 1.0)


@every_layout
def test_recomputed_tokens_are_no_hits_and_what_a_plan_missed_has_a_name(groups: tuple[LayerGroup, ...]) -> None:
    missed = 0

    for seed in SEEDS:
        harness, requests = crowd(groups, seed)
        harness.run(*requests)

        for item in harness.completions:
            counters = item.counters
            prompt = len(requests[int(item.request_id)].prompt) if item.sample_index == 0 else 0
            assert counters.prompt_tokens == counters.cached_tokens + counters.computed_tokens == prompt
            assert counters.preemptions or not counters.recomputed_tokens
            if counters.planned_tokens > counters.cached_tokens:
                named = dict(counters.limited_by)
                assert sum(named.values()) == counters.planned_tokens - counters.cached_tokens
                assert named.keys() <= {"evicted", "no room"}
                missed += 1
        counters = total(harness)
        ran = counters.computed_tokens + counters.forked_tokens + counters.recomputed_tokens
        decoded = counters.completion_tokens - len(harness.completions)
        assert harness.scheduler.tally.step_tokens == ran + decoded

    assert missed > 0


@every_layout
def test_no_write_reaches_what_is_shared_or_registered_or_kept(groups: tuple[LayerGroup, ...]) -> None:
    num_frozen = 0

    for seed in SEEDS:
        harness, requests = crowd(groups, seed)
        for item in requests:
            harness.scheduler.submit(item)
        while is_open(harness):
            step = harness.scheduler.schedule()
            assert step is not None
            before = frozen(harness, step)

            sampled = harness.runner.run(step)

            assert {key: content(harness, *key) for key in before} == before
            num_frozen += len(before)
            harness.scheduler.update(step, sampled, 1.0)

    assert num_frozen > 100


def frozen(harness: Harness, step: Step) -> dict[tuple[int, int], tuple[int | None, ...]]:
    """By group and block or slot, what nobody may write into now: a copy that waits fills a target of its own."""
    filled = {(copy.group, copy.target) for copy in step.copies}
    held = set[tuple[int, int]]()
    for manager in harness.cache.managers:
        index, pool = manager.group.index, manager.pool
        if isinstance(pool, BlockPool):
            blocks = range(1, pool.num_blocks)
            held |= {(index, block) for block in blocks if pool.ref[block] > 1 or pool.node[block] is not None}
        for checkpoint in ready(harness.cache):
            held |= {(index, block) for block in checkpoint.tables[index].blocks if block != NULL_BLOCK}
    return {key: content(harness, *key) for key in held - filled}


def content(harness: Harness, index: int, block: int) -> tuple[int | None, ...]:
    runner = harness.runner
    if not runner.groups[index].has_blocks:
        return (runner.slots[index].get(block),)
    return tuple(runner.kv[index].get((block, offset)) for offset in range(runner.groups[index].block_size))


@every_layout
def test_everything_comes_back_after_errors_and_cancellation(groups: tuple[LayerGroup, ...]) -> None:
    for seed in SEEDS:
        harness, requests = crowd(groups, seed)
        rng = random.Random(seed)
        ids = [sequence_id for item in requests for sequence_id in harness.scheduler.submit(item, plan="plan")]
        harness.runner.bad_sequences = {each for each in ids if rng.random() < 0.2}
        while is_open(harness):
            harness.step()
            if rng.random() < 0.3:
                harness.scheduler.abort(rng.choice(ids))
                harness.scheduler.check_integrity()

        harness.cache.end_plan("plan")

        assert {checkpoint.rank for checkpoint in ready(harness.cache)} <= {Rank.LOOSE}
        harness.check_all_returned()
