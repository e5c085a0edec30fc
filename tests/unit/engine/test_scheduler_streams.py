"""Random streams of requests over tiny pools: whatever happens, the tokens are the reference's and the sums add up."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.request import Completion, Counters, GroupCounters, Request
from tests.unit.engine.fake_runner import reference
from tests.unit.engine.harness import Harness, group, request

FEW = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])

LONGEST = 13 + 5 + 14 - 1  # tokens of the longest sequence that a stream may draw; the last one never runs
GROUP_SETS = (
    (group(0),),
    (group(0, window=6),),
    (group(0), group(1, window=10)),
    (group(0), group(1, window=1)),
    (group(0, block_size=8), group(1, window=3), group(2, window=9, block_size=2)),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[Harness, list[list[Request]]]:
    groups = draw(st.sampled_from(GROUP_SETS))
    max_batch_tokens = draw(st.integers(1, 24))
    exact = 1 + max(item.peak_blocks(LONGEST, max_batch_tokens) for item in groups)
    harness = Harness(
        groups,
        num_blocks=exact + draw(st.integers(0, 20)),
        max_batch_tokens=max_batch_tokens,
        max_sequences=draw(st.integers(1, 6)),
        allow_block_sharing=draw(st.booleans()),
        use_prefix_sharing=draw(st.booleans()),
        eos=frozenset({7}),
    )
    prefixes = draw(st.lists(st.lists(st.integers(0, 9), max_size=13), min_size=1, max_size=3))
    waves = []
    for wave in range(draw(st.integers(1, 4))):
        requests = []
        for number in range(draw(st.integers(1, 5))):
            prompt = draw(st.sampled_from(prefixes)) + draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
            requests.append(
                request(
                    f"{wave}.{number}",
                    prompt,
                    draw(st.integers(1, 14)),
                    job=draw(st.sampled_from(["a", "b"])),
                    num_samples=draw(st.integers(1, 2)),
                )
            )
        waves.append(requests)
    return harness, waves


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
            expected = reference(item.prompt, item.sampling.max_tokens, frozenset({7}), sample)
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
    total = sum((item.counters for item in harness.completions), Counters())
    for manager, counters in zip(harness.cache.managers, total.groups, strict=True):
        assert isinstance(counters, GroupCounters)
        cached_now = sum(1 for node in manager.pool.node if node is not None)
        assert counters.evicted_unused <= counters.evicted
        assert counters.evicted + cached_now <= counters.allocated
    seconds = sum(item.counters.engine_seconds for item in harness.completions)
    assert abs(seconds - harness.runner.num_steps) < 1e-6 * max(1, harness.runner.num_steps)


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
