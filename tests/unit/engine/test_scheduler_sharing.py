"""What a request takes from the cache, and what is counted for it."""

from __future__ import annotations

import pytest

from tests.unit.engine.fake_runner import reference
from tests.unit.engine.harness import FULL, LINEAR, Harness, group, prefix_rows, request, total

# --- what is shared ---------------------------------------------------------------------------------------------


def test_the_same_prompt_twice_hits() -> None:
    harness = Harness()
    harness.run(request("a", range(33), 1))

    again = harness.run(request("b", range(33), 1))["b", 0].counters

    assert again.cached_tokens == 32
    assert again.computed_tokens == 1
    assert [counters.shared for counters in again.groups] == [8, 3]


@pytest.mark.parametrize("max_batch_tokens", [3, 4, 7, 16, 50])
def test_a_shared_prefix_with_unique_tails_hits_wherever_the_chunks_end(max_batch_tokens: int) -> None:
    harness = Harness(max_batch_tokens=max_batch_tokens)

    for name, prompt in prefix_rows(3):
        cached = harness.run(request(name, prompt))[name, 0].counters.cached_tokens
        assert cached == (0 if name == "0" else 40)


def test_rows_with_one_prefix_in_the_first_batch_compute_it_once() -> None:
    harness = Harness(max_batch_tokens=64)

    harness.run(*[request(name, prompt) for name, prompt in prefix_rows(8)])

    counters = total(harness)
    assert counters.prompt_tokens == 8 * 43
    assert counters.computed_tokens == 40 + 8 * 3, "the prefix once, and each tail once"


def test_with_enough_memory_no_token_of_the_prefix_tree_is_computed_twice() -> None:
    harness = Harness(num_blocks=2000, max_batch_tokens=40, max_sequences=4)
    prompts = {
        f"{a}.{b}.{c}": [*range(16), a, 0, 0, 0, *range(20, 28), a, b, 0, 0, c, 9]
        for a in range(3)
        for b in range(3)
        for c in range(3)
    }

    harness.run(*[request(name, prompt) for name, prompt in prompts.items()])

    bound = 16 + 3 * 12 + 9 * 4 + 27 * 2
    assert total(harness).computed_tokens == bound


def test_rows_that_wait_for_a_prefix_let_others_start() -> None:
    harness = Harness(max_batch_tokens=32)
    for name, prompt in prefix_rows(3):
        harness.scheduler.submit(request(name, prompt))
    harness.scheduler.submit(request("other", [7, 7, 7]))

    harness.step()  # the first row takes the whole budget
    step = harness.scheduler.schedule()

    assert step is not None
    assert {chunk.sequence_id for chunk in step.chunks} == {0, 3}
    harness.scheduler.update(step, harness.runner.run(step), 1.0)
    harness.run()


def test_a_row_that_waits_goes_on_when_its_representative_is_cancelled() -> None:
    harness = Harness(max_batch_tokens=16)
    first, second = [harness.scheduler.submit(request(name, prompt))[0] for name, prompt in prefix_rows(2)]
    harness.step()
    assert harness.scheduler.num_running == 1

    assert harness.scheduler.abort(first) is not None
    harness.step()

    assert harness.scheduler.num_running == 1
    done = harness.run()
    assert done["1", 0].token_ids == reference(prefix_rows(2)[1][1], 8)
    assert done["1", 0].counters.cached_tokens == 16, "what the representative had finished is used"
    assert second == 1


def test_without_prefix_sharing_nothing_waits_and_nothing_is_skipped() -> None:
    harness = Harness(max_batch_tokens=100, use_prefix_sharing=False)

    harness.run(*[request(name, prompt) for name, prompt in prefix_rows(3)])

    counters = total(harness)
    assert counters.cached_tokens == 0
    assert counters.computed_tokens == counters.prompt_tokens
    assert counters.groups[0].shared > 0, "equal blocks are merged all the same"


def test_without_block_sharing_every_sequence_has_its_own_blocks() -> None:
    harness = Harness(allow_block_sharing=False)

    harness.run(*[request(name, prompt) for name, prompt in prefix_rows(3)])

    counters = total(harness)
    assert counters.cached_tokens == 0
    assert [item.shared for item in counters.groups] == [0, 0]
    assert counters.groups[0].allocated == 3 * 13


def test_the_hit_does_not_depend_on_the_load() -> None:
    busy = Harness(max_batch_tokens=17)
    busy.run(request("warm", range(40)))
    others = [request(str(number), [50 + number] * 9, 20) for number in range(5)]

    cached = busy.run(*others, request("row", [*range(40), 1, 2]))["row", 0].counters.cached_tokens

    assert cached == 40


def test_groups_with_different_block_sizes_share_in_one_model() -> None:
    harness = Harness((group(0, block_size=8), group(1, window=9, block_size=2)), num_blocks=100)
    harness.run(request("a", range(27)))

    done = harness.run(request("b", range(27)))["b", 0]

    assert done.counters.cached_tokens == 24
    assert done.token_ids == reference(range(27), 8)


# --- what is counted --------------------------------------------------------------------------------------------


def test_a_prompt_counts_once_however_many_samples_it_has() -> None:
    harness = Harness()

    done = harness.run(request("a", range(21), num_samples=3))

    assert [done["a", sample].counters.prompt_tokens for sample in range(3)] == [21, 0, 0]
    assert [done["a", sample].counters.forked_tokens for sample in range(3)] == [0, 0, 0]
    assert total(harness).completion_tokens == 3 * 8


def test_the_seconds_of_a_step_are_split_by_tokens() -> None:
    harness = Harness(max_batch_tokens=100)

    done = harness.run(request("long", [1, 2, 3, 4, 5, 6], 1), request("short", [9, 9], 1))

    assert done["long", 0].counters.engine_seconds == pytest.approx(6 / 8)
    assert done["short", 0].counters.engine_seconds == pytest.approx(2 / 8)


def test_a_prefix_that_two_jobs_use_is_charged_half_to_each() -> None:
    harness = Harness(FULL, max_batch_tokens=100)
    harness.run(request("warm", range(41), 1, job="warm"))

    harness.run(request("a", range(41), 1, job="a"), request("b", range(41), 1, job="b"))

    assert harness.cache.block_use("a")[0].peak == pytest.approx(10 / 2 + 1)
    assert harness.cache.block_use("b")[0].peak == pytest.approx(10 / 2 + 1)
    assert harness.cache.block_use("warm")[0].peak == pytest.approx(11)


def test_totals_are_the_sums_of_the_completions() -> None:
    harness = Harness()

    harness.run(*[request(name, prompt) for name, prompt in prefix_rows(5)])

    totals = harness.scheduler.tally.totals(max_sequences=8)
    counters = total(harness)
    assert totals.cached_tokens == counters.cached_tokens > 0
    assert totals.computed_tokens == counters.computed_tokens
    assert totals.completion_tokens == counters.completion_tokens
    assert totals.num_requests == totals.num_finished == 5
    assert totals.step_tokens == counters.computed_tokens + counters.completion_tokens - 5
    assert 0 < totals.mean_occupancy <= 1


def test_a_recomputed_overlap_gets_fresh_blocks_and_gives_them_back_for_the_cached_ones() -> None:
    """Its blocks are there and its state is not, so that the prefix runs again beside those who read it."""
    harness = Harness(LINEAR)
    harness.run(request("a", [*range(40), 1], 1))
    before = harness.cache.find([*range(40), 2]).path[-1].blocks[0]

    done = harness.run(request("b", [*range(40), 2], 1))["b", 0]

    assert done.counters.computed_tokens == 41
    assert (done.counters.groups[0].allocated, done.counters.groups[0].shared) == (11, 10)
    assert harness.cache.find([*range(40), 2]).path[-1].blocks[0] == before
