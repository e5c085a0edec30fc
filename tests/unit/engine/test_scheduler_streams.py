"""Random streams of requests over tiny pools: whatever happens, the tokens are the reference's and the sums add up."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.cache.groups import LayerGroup
from engine.grid import ANYWHERE, Grid
from engine.request import Completion, GroupCounters, Request
from tests.unit.engine.fake_runner import reference
from tests.unit.engine.harness import Harness, group, request, total

FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])

EOS = frozenset({7})
LONGEST = 13 + 5 + 30 - 1  # tokens of the longest sequence that a stream may draw; the last one never runs
GROUP_SETS = (
    (group(0),),
    (group(0, window=6),),
    (group(0), group(1, window=10)),
    (group(0), group(1, window=1)),
    (group(0, block_size=8), group(1, window=3), group(2, window=9, block_size=2)),
    (group(0), LayerGroup.of_states(1, (1,))),
    (group(0, block_size=8), group(1, window=9, block_size=2), LayerGroup.of_states(2, (2, 3))),
    (LayerGroup.of_states(0, (0,)),),
)
# A window or a state holds as much at the start as ever after: only full attention can outgrow what admission saw.
WITH_FULL = tuple(groups for groups in GROUP_SETS if groups[0].kind == "full")
IDS = ["full", "hybrid", "window of 1", "three sizes", "full and states", "three kinds"]


@st.composite
def streams(draw: st.DrawFn) -> tuple[Harness, list[list[Request]]]:
    groups = draw(st.sampled_from(GROUP_SETS))
    max_batch_tokens = draw(st.sampled_from([8, 24, 5, 1]))
    spare = 1 + draw(st.integers(0, 6))
    harness = Harness(
        groups,
        num_blocks=[spare + peak(item, LONGEST, max_batch_tokens) for item in groups],
        max_batch_tokens=max_batch_tokens,
        max_sequences=draw(st.sampled_from([4, 6, 2, 1])),
        allow_block_sharing=draw(st.sampled_from([True, True, False])),
        use_prefix_sharing=draw(st.sampled_from([True, True, False])),
        eos=EOS,
        grid=draw(st.sampled_from([ANYWHERE, Grid(8)] if max_batch_tokens >= 8 else [ANYWHERE])),
    )
    # Expecting too little output is what leads to preemptions.
    harness.scheduler._admission._output_ratio = draw(st.sampled_from([0.0, 0.0, 1.0]))
    prefixes = draw(st.lists(st.lists(st.integers(0, 9), min_size=6, max_size=13), min_size=1, max_size=3))
    waves = []
    for wave in range(draw(st.integers(2, 4))):
        requests = []
        for number in range(draw(st.integers(3, 6))):
            prompt = draw(st.sampled_from(prefixes)) + draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
            requests.append(
                request(
                    f"{wave}.{number}",
                    prompt,
                    draw(st.sampled_from([30, 14, 3])),
                    job=draw(st.sampled_from(["a", "b"])),
                    num_samples=draw(st.integers(1, 2)),
                )
            )
        waves.append(requests)
    return harness, waves


def peak(item: LayerGroup, num_tokens: int, max_chunk: int) -> int:
    """What one sequence needs at most: blocks, or its state slot."""
    return item.peak_blocks(num_tokens, max_chunk) if item.has_blocks else 1


@FEW
@given(streams(), st.data())
def test_every_request_finishes_with_the_reference_tokens(
    stream: tuple[Harness, list[list[Request]]], data: st.DataObject
) -> None:
    harness, waves = stream

    for requests in waves:
        for item in requests:
            harness.scheduler.submit(item)
        for _ in range(data.draw(st.integers(0, 6))):
            harness.step()
    harness.run()

    submitted = [item for requests in waves for item in requests]
    done = {(item.request_id, item.sample_index): item for item in harness.completions}
    assert len(done) == sum(item.sampling.num_samples for item in submitted)
    for item in submitted:
        for sample in range(item.sampling.num_samples):
            completion = done[item.request_id, sample]
            expected = reference(item.prompt, item.sampling.max_tokens, EOS, sample)
            assert completion.token_ids == expected
            check_counters(item, completion)
    check_block_counters(harness)


def check_counters(item: Request, completion: Completion) -> None:
    counters = completion.counters
    assert counters.prompt_tokens == counters.cached_tokens + counters.computed_tokens
    assert counters.prompt_tokens == (len(item.prompt) if completion.sample_index == 0 else 0)
    assert counters.completion_tokens == len(completion.token_ids)
    assert counters.preemptions or not counters.recomputed_tokens


def check_block_counters(harness: Harness) -> None:
    for manager, counters in zip(harness.cache.managers, total(harness).groups, strict=True):
        assert isinstance(counters, GroupCounters)
        if not manager.group.has_blocks:
            assert replace(counters, allocated=0, copied=0) == GroupCounters(), "a slot was shared or evicted"
            continue
        cached_now = sum(1 for node in manager.pool.node if node is not None)
        assert counters.evicted_unused <= counters.evicted
        assert counters.evicted + cached_now <= counters.allocated
    seconds = sum(item.counters.engine_seconds for item in harness.completions)
    assert abs(seconds - harness.runner.num_steps) < 1e-6 * max(1, harness.runner.num_steps)


@pytest.mark.parametrize("groups", WITH_FULL, ids=IDS)
@pytest.mark.parametrize("use_prefix_sharing", [True, False])
def test_a_crowded_pool_preempts_and_evicts_and_gives_the_same_tokens(
    groups: tuple[LayerGroup, ...], use_prefix_sharing: bool
) -> None:
    rng = random.Random(7)
    prefixes = [[rng.randrange(10) for _ in range(12)] for _ in range(3)]
    requests = [
        request(str(number), [*rng.choice(prefixes), rng.randrange(10), number], 24, num_samples=1 + number % 2)
        for number in range(16)
    ]
    harness = crowded(groups, use_prefix_sharing)

    for item in requests:
        harness.scheduler.submit(item)
    while harness.scheduler.num_waiting + harness.scheduler.num_running:
        harness.scheduler._admission._output_ratio = 0.0  # never learns: admits as if every output were short
        harness.step()
    harness.check_all_returned()

    for item in requests:
        done = [completion for completion in harness.completions if completion.request_id == item.request_id]
        assert len(done) == item.sampling.num_samples
        for completion in done:
            assert completion.token_ids == reference(item.prompt, 24, sample_index=completion.sample_index)
            check_counters(item, completion)
    check_block_counters(harness)
    counters = total(harness)
    assert counters.preemptions > 0
    assert any(item.evicted for item in counters.groups)
    assert (counters.cached_tokens > 0) == use_prefix_sharing


def crowded(groups: tuple[LayerGroup, ...], use_prefix_sharing: bool) -> Harness:
    """Room for little more than one sequence of the 38 tokens above, and far more sequences than that."""
    return Harness(
        groups,
        num_blocks=[(2 if item.kind == "full" else 40) + peak(item, 37, 16) for item in groups],
        max_batch_tokens=16,
        max_sequences=12,
        use_prefix_sharing=use_prefix_sharing,
    )


@FEW
@given(streams(), st.data())
def test_cancelling_at_any_time_gives_every_block_back(
    stream: tuple[Harness, list[list[Request]]], data: st.DataObject
) -> None:
    harness, waves = stream
    ids = [sequence_id for item in waves[0] for sequence_id in harness.scheduler.submit(item)]

    for sequence_id in ids:
        for _ in range(data.draw(st.integers(0, 3))):
            harness.step()
        finished = harness.scheduler.abort(sequence_id)
        harness.scheduler.check_integrity()
        if finished is not None:
            counters = finished.completion.counters
            assert finished.completion.finish_reason == "abort"
            assert counters.prompt_tokens == counters.cached_tokens + counters.computed_tokens

    harness.check_all_returned()
    assert harness.run(*waves[-1]).keys()
