"""What the scheduler makes of plans and of several samples where something comes in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engine.cache.groups import LayerGroup
from engine.cache.manager import KVCache, SequenceBlocks
from engine.cache.tables import Rank
from engine.errors import RequestRefused
from engine.request import Junction
from engine.step import Sampled, Step
from tests.unit.engine.fake_runner import FakeRunner, reference
from tests.unit.engine.harness import FULL, LINEAR, Harness, request, total
from tests.unit.engine.planned import LAYOUTS, tree_bound
from tests.unit.engine.planned import planned as plan_requests
from tests.unit.engine.world import planned


def start(cache: KVCache, tokens: list[int], planned: int = 0, *junctions: Junction) -> SequenceBlocks:
    """Run all tokens, in chunks that end where a state is to be kept."""
    seq = cache.new_sequence("job")
    seq.follow("plan", planned, junctions, cache.grid)
    hit = cache.find(tokens, seq)
    assert cache.admit(seq, tokens, hit, len(tokens))
    stop = cache.next_stop(seq)
    if stop is not None:
        cache.commit(seq, tokens, stop)
    cache.commit(seq, tokens, len(tokens))
    return seq


def test_of_two_places_that_others_will_start_at_the_one_used_last_stays() -> None:
    cache = KVCache(LINEAR, [40, 9], max_chunk=64)
    one, other = list(range(8)), list(range(20, 28))
    for trunk in (one, other):
        cache.release(start(cache, [*trunk, 1], 0, Junction(8, 2)))
    cache.release(start(cache, [*one, 2], 8))

    assert cache.reclaim(Rank.PLANNED)

    assert cache.find([*one, 3]).length == 8
    assert cache.find([*other, 3]).length == 0


@pytest.mark.parametrize(("groups", "num_blocks"), [(LINEAR, [2000, 9]), (FULL, [90])], ids=["slots", "blocks"])
def test_places_kept_for_later_rows_leave_room_for_rows_that_wait_now(
    groups: tuple[LayerGroup, ...], num_blocks: list[int]
) -> None:
    harness = Harness(groups, num_blocks=num_blocks, max_batch_tokens=16)
    trunks = [[100 + number, *range(9)] for number in range(60)]
    prompts = [(*trunk, last) for last in (1, 2) for trunk in trunks]  # each trunk comes back after all others
    rows = [
        replace(request(str(number), prompt, (3, 20)[number % 2]), **known)
        for number, (prompt, known) in enumerate(planned(prompts))
    ]

    harness.run(*rows)

    assert harness.scheduler.tally.totals(max_sequences=8).mean_sequences > 3.4


def test_rows_that_start_leave_room_for_the_places_that_are_still_to_be_made() -> None:
    harness = Harness(LINEAR, num_blocks=[200, 7], max_batch_tokens=24)
    trunk = range(23)
    branches = [[*trunk, 100 + number, *range(30, 43)] for number in range(4)]
    prompts = [(*branch, 200 + leaf, 1, 2) for branch in branches for leaf in range(12)]
    rows = [replace(request(str(number), prompt), **known) for number, (prompt, known) in enumerate(planned(prompts))]

    harness.run(*rows)

    assert total(harness).limited_by == ()
    assert total(harness).computed_tokens == 23 + 4 * 14 + 48 * 3


class SpoilsOneSample(FakeRunner):
    """Finds no token for the second sample of the first step that draws several."""

    def run(self, step: Step) -> list[Sampled]:
        drawn = super().run(step)
        if len(drawn) == 2:
            drawn[1] = replace(drawn[1], error="no token can be chosen")
        return drawn


def test_a_sample_without_a_token_ends_alone_and_its_prompt_counts_as_run() -> None:
    harness = Harness(LINEAR)
    harness.runner = SpoilsOneSample(LINEAR)
    row = replace(request("a", range(10), num_samples=2), junctions=(Junction(10, 1),))

    harness.scheduler.submit(row)
    while harness.scheduler.num_waiting + harness.scheduler.num_running:
        harness.step()

    spoilt, sound = harness.completions
    assert (spoilt.sample_index, spoilt.finish_reason) == (1, "error")
    assert sound.token_ids == reference(range(10), 8)


class NeverWalked(dict[Any, Any]):
    def __iter__(self) -> Any:
        raise AssertionError("somebody looks at everyone who waits")

    items = values = keys = __iter__


def test_a_step_does_not_look_at_the_samples_of_rows_that_wait() -> None:
    harness = Harness(max_sequences=4)
    for number in range(20):
        harness.scheduler.submit(request(str(number), [number, 1], num_samples=2))
    harness.scheduler._forks._followers = NeverWalked(harness.scheduler._forks._followers)

    for _ in range(5):
        step = harness.scheduler.schedule()
        assert step is not None
        harness.scheduler.update(step, harness.runner.run(step), 1.0)

    assert harness.scheduler.num_running


def test_a_row_whose_plan_came_true_was_limited_by_nothing() -> None:
    harness = Harness(LINEAR)
    harness.run(request("another plan", range(24)))
    rows = planned([(*range(8), 90, 91), (*range(20), 92)])

    done = harness.run(*[replace(request(str(number), row), **known) for number, (row, known) in enumerate(rows)])

    counters = done["1", 0].counters
    assert counters.planned_tokens == counters.cached_tokens == 8, "blocks alone reach further, but no state"
    assert counters.limited_by == ()


@pytest.mark.parametrize("num_slots", [3, 4, 5, 6, 8, 10])
@pytest.mark.parametrize("num_samples", [4, 16])
def test_samples_fork_however_few_slots_there_are(num_slots: int, num_samples: int) -> None:
    branches = [[*range(100, 141), *[200 + branch] * 9] for branch in range(4)]
    prompts = [(*branch, number, *range(20)) for branch in branches for number in range(4)]
    harness = Harness(LINEAR, num_blocks=[400, 1 + num_slots], max_sequences=max(8, num_samples), max_batch_tokens=64)

    harness.run(*plan_requests(prompts, 12, num_samples=num_samples))

    assert total(harness).forked_tokens == 0
    assert {item.token_ids for item in harness.completions} == {
        reference(prompt, 12, sample_index=sample) for prompt in prompts for sample in range(num_samples)
    }


def trunk_with_tails() -> list[tuple[int, ...]]:
    """Two branches of one trunk; neither ends with a block."""
    trunk, branches = range(100, 141), (range(200, 207), range(300, 307))
    return [(*trunk, *branch, number, 1) for branch in branches for number in range(4)]


@pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_where_a_row_was_to_stop_for_others_that_is_refused_the_next_one_does(groups: tuple[LayerGroup, ...]) -> None:
    prompts = trunk_with_tails()
    harness = Harness(groups, max_model_len=60, max_sequences=3, max_batch_tokens=24)
    first, *others = plan_requests(prompts)
    too_long = replace(first, sampling=replace(first.sampling, max_tokens=50))

    with pytest.raises(RequestRefused):
        harness.scheduler.submit(too_long)
    harness.run(*others)

    assert total(harness).computed_tokens == tree_bound(prompts[1:])
    assert not harness.cache._checkpoints._plans[None]


@pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_where_a_row_was_to_stop_for_others_that_is_cancelled_while_it_waits_the_next_one_does(
    groups: tuple[LayerGroup, ...],
) -> None:
    prompts = trunk_with_tails()
    harness = Harness(groups, max_sequences=3, max_batch_tokens=24)
    first, *others = plan_requests(prompts)
    (cancelled,) = harness.scheduler.submit(first)

    harness.scheduler.abort(cancelled)
    harness.run(*others)

    assert total(harness).computed_tokens == tree_bound(prompts[1:])
    assert not harness.cache._checkpoints._plans[None]


@pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_nobody_waits_for_rows_that_were_refused_or_cancelled_before_they_were_expected(
    groups: tuple[LayerGroup, ...],
) -> None:
    prompts = trunk_with_tails()
    harness = Harness(groups, max_model_len=60, max_sequences=3, max_batch_tokens=24)
    rows = plan_requests(prompts)
    for row in rows[:-2]:
        harness.scheduler.submit(row)

    with pytest.raises(RequestRefused):
        harness.scheduler.submit(replace(rows[-2], sampling=replace(rows[-2].sampling, max_tokens=50)))
    (cancelled,) = harness.scheduler.submit(rows[-1])
    harness.scheduler.abort(cancelled)
    harness.run()

    assert total(harness).computed_tokens == tree_bound(prompts[:-2])
    assert not harness.cache._checkpoints._plans[None]
    assert not list(harness.cache._checkpoints._ready)


@pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_row_that_another_plan_will_never_run_takes_nothing_from_this_one(groups: tuple[LayerGroup, ...]) -> None:
    prompts = trunk_with_tails()[:2]
    harness = Harness(groups, max_model_len=60, max_sequences=1, max_batch_tokens=24)
    first, second = plan_requests(prompts, 8)
    refused = replace(second, request_id="3", sampling=replace(second.sampling, max_tokens=50))
    for row, plan in ((first, "one"), (second, "one"), (replace(first, request_id="2"), "two")):
        harness.scheduler.submit(row, plan=plan)

    with pytest.raises(RequestRefused):
        harness.scheduler.submit(refused, plan="two")
    harness.run()

    assert [item.token_ids for item in harness.completions] == [reference(prompts[i], 8) for i in (0, 1, 0)]
    assert harness.cache._checkpoints._plans == {"one": set(), "two": set()}
    assert not list(harness.cache._checkpoints._ready)
