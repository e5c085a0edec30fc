from __future__ import annotations

import pytest

from engine.cache.manager import KVCache
from engine.errors import RequestRefused
from engine.request import Counters
from tests.unit.engine.fake_runner import next_token, reference
from tests.unit.engine.harness import FULL, HYBRID, Harness, group, prefix_rows, request, total

# --- what comes out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switches", [(True, True), (True, False), (False, True), (False, False)])
def test_every_sharing_mode_gives_the_same_tokens(switches: tuple[bool, bool]) -> None:
    harness = Harness(allow_block_sharing=switches[0], use_prefix_sharing=switches[1])

    done = harness.run(*[request(name, prompt) for name, prompt in prefix_rows(6)])

    for name, prompt in prefix_rows(6):
        assert done[name, 0].token_ids == reference(prompt, 8)


def test_a_prompt_of_one_token_runs() -> None:
    done = Harness().run(request("a", [5], 1))

    assert done["a", 0].token_ids == reference([5], 1)
    assert done["a", 0].finish_reason == "length"


def test_an_eos_token_ends_a_sequence_and_is_not_among_its_tokens() -> None:
    tokens = reference([1, 2, 3], 8)
    harness = Harness(eos=frozenset({tokens[3]}))

    done = harness.run(request("a", [1, 2, 3]))["a", 0]

    assert done.token_ids == tokens[: tokens.index(tokens[3])]
    assert (done.finish_reason, done.stop_token_id) == ("stop", tokens[3])
    assert done.cumulative_logprob == pytest.approx(-0.5 * len(done.token_ids))


def test_ignore_eos_leaves_stop_token_ids_in_force() -> None:
    tokens = reference([1, 2, 3], 8)
    eos, stop = tokens[1], tokens[4]
    assert stop not in tokens[:4]

    done = Harness(eos=frozenset({eos})).run(
        request("a", [1, 2, 3], ignore_eos=True, stop_token_ids=(stop,)),
    )["a", 0]

    assert done.token_ids == tokens[:4]
    assert done.stop_token_id == stop


def test_the_token_on_which_the_stop_check_fires_is_kept() -> None:
    seen: list[int] = []

    def make_stop():  # type: ignore[no-untyped-def]
        return lambda token: seen.append(token) or len(seen) == 3

    done = Harness().run(request("a", [1, 2, 3], make_stop=make_stop))["a", 0]

    assert done.token_ids == tuple(seen) == reference([1, 2, 3], 3)
    assert (done.finish_reason, done.stop_token_id) == ("stop", None)


def test_a_stop_check_that_raises_fails_its_row_alone() -> None:
    def make_stop():  # type: ignore[no-untyped-def]
        return lambda token: 1 / 0

    done = Harness().run(request("bad", [1, 2, 3], make_stop=make_stop), request("good", [4, 5]))

    assert (done["bad", 0].finish_reason, done["bad", 0].error_code) == ("error", "internal")
    assert "ZeroDivisionError" in (done["bad", 0].error_message or "")
    assert done["good", 0].token_ids == reference([4, 5], 8)


def test_logits_that_are_not_finite_fail_their_row_and_leave_nothing_in_the_cache() -> None:
    harness = Harness()
    harness.runner.bad_sequences = {0}

    done = harness.run(request("bad", range(20)), request("good", [4, 5]))

    assert (done["bad", 0].finish_reason, done["bad", 0].error_code) == ("error", "non_finite_logits")
    assert done["good", 0].finish_reason == "length"
    assert harness.cache.find([*range(20), 1]).length == 0


def test_each_sample_is_a_sequence_of_its_own() -> None:
    prompt = list(range(20))

    done = Harness().run(request("a", prompt, num_samples=3))

    for sample in range(3):
        assert done["a", sample].token_ids == reference(prompt, 8, sample_index=sample)


# --- what is refused --------------------------------------------------------------------------------------------


def test_a_row_that_can_never_fit_fails_alone_at_submission() -> None:
    harness = Harness(FULL, num_blocks=11)

    with pytest.raises(RequestRefused, match="even when empty") as refusal:
        harness.scheduler.submit(request("big", range(34), 8))
    done = harness.run(request("exact", range(33), 8))

    assert refusal.value.code == "context_length"
    assert done["exact", 0].token_ids == reference(range(33), 8)


def test_a_sliding_model_takes_a_prompt_far_longer_than_its_pool() -> None:
    harness = Harness((group(0, window=6),), num_blocks=8, max_batch_tokens=8)

    assert harness.run(request("a", range(300)))["a", 0].token_ids == reference(range(300), 8)


def test_prompt_and_new_tokens_must_fit_the_models_length() -> None:
    harness = Harness(max_model_len=20)
    harness.scheduler.submit(request("fits", range(12), 8))

    with pytest.raises(RequestRefused, match="the model takes 20") as refusal:
        harness.scheduler.submit(request("long", range(13), 8))

    assert refusal.value.code == "context_length"


@pytest.mark.parametrize(
    "bad", [request("a", []), request("a", [1], 0), request("a", [1], num_samples=0)], ids=["prompt", "max", "samples"]
)
def test_a_request_without_anything_to_do_is_refused(bad) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RequestRefused) as refusal:
        Harness().scheduler.submit(bad)

    assert refusal.value.code == "invalid_request"


def test_sizing_and_admission_use_the_same_bound() -> None:
    """A pool of exactly the peak runs the longest request and one block less refuses it, for windows around a block."""
    for window in (None, 1, 2, 3, 4, 5, 8, 9):
        item = group(0, window=window)
        harness = Harness((item,), num_blocks=1 + item.peak_blocks(40, 7), max_batch_tokens=7)

        assert harness.run(request("a", range(33)))["a", 0].token_ids == reference(range(33), 8)
        short = Harness((item,), num_blocks=item.peak_blocks(40, 7), max_batch_tokens=7)
        with pytest.raises(RequestRefused, match="even when empty"):
            short.scheduler.submit(request("a", range(33)))


# --- when memory is short ---------------------------------------------------------------------------------------


def crowded(num_blocks: int, **switches: bool) -> Harness:
    return Harness(FULL, num_blocks=num_blocks, max_batch_tokens=32, max_sequences=4, **switches)


@pytest.mark.parametrize("use_prefix_sharing", [True, False])
def test_a_preempted_sequence_gives_the_same_tokens(use_prefix_sharing: bool) -> None:
    harness = crowded(22, use_prefix_sharing=use_prefix_sharing)
    # Short outputs teach the scheduler to expect short ones; then long ones take it by surprise.
    stop = next_token_after([1, 2, 3])
    harness.run(*[request(f"short{n}", [1, 2, 3], 60, stop_token_ids=(stop,)) for n in range(60)])
    rows = [request(str(number), [number + 10, 5, 6, 7, 8, 9], 40) for number in range(4)]

    done = harness.run(*rows)

    counters = sum((item.counters for item in done.values()), Counters())
    assert counters.preemptions > 0
    assert counters.prompt_tokens == counters.cached_tokens + counters.computed_tokens == 4 * 6
    assert counters.cached_tokens == 0, "what a sequence finds of its own after a preemption is no hit"
    for item in rows:
        assert done[item.request_id, 0].token_ids == reference(item.prompt, 40)


def next_token_after(prompt: list[int]) -> int:
    return reference(prompt, 1)[0]


def test_the_oldest_sequence_is_never_preempted() -> None:
    harness = crowded(22)
    harness.scheduler._admission._output_ratio = 0.0
    rows = [request(str(number), [number + 10, 5, 6, 7, 8, 9], 40) for number in range(4)]

    done = harness.run(*rows)

    assert done["0", 0].counters.preemptions == 0
    assert done["3", 0].counters.preemptions > 0


def test_the_youngest_sequence_waits_for_room_rather_than_giving_up_its_own() -> None:
    harness = Harness(FULL, num_blocks=6)
    harness.scheduler._admission._output_ratio = 0.0

    done = harness.run(request("old", range(7), 3), request("young", range(10, 17), 8))

    assert done["young", 0].token_ids == reference(range(10, 17), 8)
    assert total(harness).preemptions == 0


def test_growing_decodes_near_a_full_pool_do_not_collapse() -> None:
    harness = crowded(40)
    harness.scheduler._admission._output_ratio = 0.0
    rows = [request(str(number), [number + 10, 5, 6], 60) for number in range(12)]

    harness.run(*rows)

    counters = total(harness)
    assert counters.preemptions < 40
    assert counters.recomputed_tokens < counters.completion_tokens


def test_admission_leaves_room_for_the_output_that_is_expected() -> None:
    harness = crowded(22)
    for number in range(4):
        harness.scheduler.submit(request(str(number), [number + 10, 5, 6], 30))

    harness.step()

    assert harness.scheduler.num_running == 2, "two outputs of 30 tokens fill 20 blocks"
    harness.run()
    assert total(harness).preemptions == 0


def test_a_sequence_that_decodes_reserves_no_room_for_long_chunks() -> None:
    window = group(0, window=6)
    harness = Harness((window,), num_blocks=1 + 16, max_batch_tokens=32, max_sequences=8)

    for number in range(5):
        harness.scheduler.submit(request(str(number), [number] * 16, 20))
    for _ in range(6):
        harness.step()

    assert harness.scheduler.num_running >= 4, "each holds 3 blocks, and the next prompt needs 6"
    harness.run()


def test_more_running_sequences_than_tokens_in_a_step_all_finish() -> None:
    harness = Harness(max_batch_tokens=3, max_sequences=8)

    done = harness.run(*[request(str(number), [number], 5) for number in range(8)])

    assert len(done) == 8


# --- how fast it decides ----------------------------------------------------------------------------------------


def test_a_step_looks_at_few_of_the_waiting_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness(max_sequences=4)
    for number in range(3000):
        harness.scheduler.submit(request(str(number), [1, 2, 3, 4, 5, number]))
    looked: list[int] = []
    find = KVCache.find
    monkeypatch.setattr(KVCache, "find", lambda cache, *args: looked.append(1) or find(cache, *args))

    for _ in range(20):
        before = len(looked)
        step = harness.scheduler.schedule()
        assert step is not None
        harness.scheduler.update(step, harness.runner.run(step), 1.0)
        assert len(looked) - before <= 3 * 4

    assert harness.scheduler.num_waiting > 2900


def test_cancelled_rows_leave_the_queue_without_being_run() -> None:
    harness = Harness(max_sequences=1)
    ids = [harness.scheduler.submit(request(str(number), [number]))[0] for number in range(10)]
    harness.step()

    for sequence_id in ids[1:9]:
        assert harness.scheduler.abort(sequence_id) is not None
        assert harness.scheduler.abort(sequence_id) is None
    done = harness.run()

    assert {name for name, _ in done} == {"0", "9"}


def test_the_fake_sampler_depends_on_every_token() -> None:
    """The other tests stand on it: a wrong token anywhere before shows in what comes out."""
    assert len({next_token(state, 0) for state in range(50)}) > 10
    assert reference([1, 2, 3], 8) != reference([2, 1, 3], 8)


def test_hybrid_groups_have_a_window_that_the_prompts_above_exceed() -> None:
    assert HYBRID[1].window is not None
    assert HYBRID[1].window < 40
