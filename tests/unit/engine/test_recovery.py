"""A step that fails costs at most the row that cannot run: the others get the tokens that they would have got."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from engine.cache.groups import LayerGroup
from engine.config import EngineConfig
from engine.errors import EngineDead
from engine.loop import Engine
from engine.recovery import GROW_AFTER, Batch, Timeouts, Trouble, trouble_of
from engine.request import Completion, Request, SamplingParams
from engine.step import Chunk, Sampled, Step
from tests.unit.engine.fake_runner import FakeRunner, reference
from tests.unit.engine.harness import HYBRID, LINEAR, request

POISON = 666  # a token id
Failure = Callable[[Step], Exception | None]


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


class FailingRunner(FakeRunner):
    """Fails before the copies of a step are made, or when everything was written already."""

    def __init__(self, groups: tuple[LayerGroup, ...], failure: Failure, *, late: bool) -> None:
        super().__init__(groups)
        self.failure = failure
        self.late = late
        self.sizes: list[int] = []
        self.hung = threading.Event()

    def run(self, step: Step) -> list[Sampled]:
        error = self.failure(step)
        if error is not None and not self.late:
            raise error
        sampled = super().run(step)
        if error is not None:
            for states in self.slots:  # a state that ran half-way is worth nothing
                states.update({slot: -1 for chunk in step.chunks for table in chunk.tables for slot in table[:1]})
            raise error
        self.sizes.append(len(step.chunks))
        return sampled


@contextmanager
def engine_of(
    failure: Failure, *, groups: tuple[LayerGroup, ...] = HYBRID, late: bool = False, **options: object
) -> Iterator[tuple[Engine, FailingRunner]]:
    runner = FailingRunner(groups, failure, late=late)
    config = EngineConfig(
        num_blocks=200,
        num_state_slots=40,
        block_size=4,
        max_batch_tokens=64,
        max_sequences=16,
        **options,  # type: ignore[arg-type]
    )
    engine = Engine(runner, groups, config, frozenset(), max_model_len=400)
    engine.start()
    try:
        yield engine, runner
    finally:
        engine.stop()


def rows(count: int, *, max_tokens: int = 12) -> list[Request]:
    """Rows that share a prefix."""
    return [request(str(number), [*range(18), 100 + number, 1], max_tokens) for number in range(count)]


def expected(item: Request) -> tuple[int, ...]:
    return reference(item.prompt, item.sampling.max_tokens)


def run(engine: Engine, items: list[Request]) -> dict[str, Completion]:
    with engine.feed(items) as feed:
        return {done.request_id: done for done in feed}


def holds_poison(chunk: Chunk) -> bool:
    return POISON in chunk.token_ids[: chunk.start + chunk.length]


def poisoned(step: Step) -> Exception | None:
    return ValueError("no such row") if any(map(holds_poison, step.chunks)) else None


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("groups", [HYBRID, LINEAR])
def test_a_row_that_the_runner_cannot_run_is_an_error_and_its_neighbours_get_their_tokens(
    groups: tuple[LayerGroup, ...], late: bool
) -> None:
    good = rows(20)
    bad = request("bad", [*range(18), POISON, 5], 9)

    with engine_of(poisoned, groups=groups, late=late) as (engine, _):
        done = run(engine, [*good[:7], bad, *good[7:]])
        engine.check_integrity()

    assert (done["bad"].finish_reason, done["bad"].error_code) == ("error", "engine_error")
    assert "ValueError('no such row')" in (done["bad"].error_message or "")
    assert [done[item.request_id].token_ids for item in good] == [expected(item) for item in good]


def test_all_samples_of_a_bad_row_are_errors_and_the_engine_lives() -> None:
    bad = request("bad", [1, 2, POISON], 5, num_samples=8)
    good = rows(3)

    with engine_of(poisoned) as (engine, _):
        with engine.feed([bad, *good]) as feed:
            done = list(feed)
        assert engine.alive

    assert sorted(each.sample_index for each in done if each.request_id == "bad") == list(range(8))
    assert {each.error_code for each in done if each.request_id == "bad"} == {"engine_error"}
    assert sum(each.finish_reason == "length" for each in done) == 3


@pytest.mark.parametrize("error", [OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_step_that_does_not_fit_into_memory_is_halved_until_it_does(error: Exception) -> None:
    def too_many(step: Step) -> Exception | None:
        return error if len(step.chunks) > 5 or step.num_tokens > 30 else None

    items = rows(24)
    with engine_of(too_many) as (engine, runner):
        done = run(engine, items)

    assert [done[item.request_id].token_ids for item in items] == [expected(item) for item in items]
    assert 1 < max(runner.sizes) <= 5


def test_a_row_that_does_not_fit_into_memory_alone_is_an_error() -> None:
    def too_long(step: Step) -> Exception | None:
        ends = [chunk.start + chunk.length for chunk in step.chunks]
        return RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes") if max(ends) > 60 else None

    items = rows(6)
    with engine_of(too_long) as (engine, _):
        done = run(engine, [*items[:2], request("long", range(100, 190), 5), *items[2:]])

    assert (done["long"].error_code, done["long"].finish_reason) == ("out_of_memory", "error")
    assert [done[item.request_id].token_ids for item in items] == [expected(item) for item in items]


def test_an_engine_that_can_run_no_row_at_all_is_dead() -> None:
    with (
        engine_of(lambda step: ValueError("a bug")) as (engine, _),
        engine.feed(rows(20)) as feed,
        pytest.raises(EngineDead, match="a bug"),
    ):
        list(feed)

    assert not engine.alive


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("groups", [HYBRID, LINEAR])
def test_failures_at_random_steps_change_no_token(groups: tuple[LayerGroup, ...], seed: int) -> None:
    chance = random.Random(seed)

    def sometimes(step: Step) -> Exception | None:
        # Never a sequence that is alone, so that no row is to blame.
        return OSError("for a moment") if len(step.chunks) > 1 and chance.random() < 0.2 else None

    items = rows(30) + [request(f"n{k}", [*range(10), 50 + k], 6, num_samples=3) for k in range(4)]
    with engine_of(sometimes, groups=groups, late=bool(seed % 2)) as (engine, _):
        with engine.feed(items) as feed:
            done = list(feed)
        engine.check_integrity()

    by_id = {item.request_id: item for item in items}
    assert len(done) == 30 + 4 * 3
    for each in done:
        item = by_id[each.request_id]
        assert each.token_ids == reference(item.prompt, item.sampling.max_tokens, sample_index=each.sample_index)


def test_40_a_row_that_runs_for_too_long_is_an_error_and_its_neighbours_go_on() -> None:
    pause = threading.Event()

    def slow(step: Step) -> Exception | None:
        pause.wait(0.005)
        return None

    short = rows(5, max_tokens=4)
    with engine_of(slow, request_timeout_seconds=0.5) as (engine, _):
        done = run(engine, [request("endless", [7, 8], 390), *short])

    assert (done["endless"].finish_reason, done["endless"].error_code) == ("error", "request_timeout")
    assert 0 < len(done["endless"].token_ids) < 390
    assert [done[item.request_id].token_ids for item in short] == [expected(item) for item in short]


def test_only_the_time_since_its_first_step_counts_for_a_sequence() -> None:
    timeouts = Timeouts(10.0)

    assert timeouts.overdue((1,), now=100.0) == []
    assert timeouts.overdue((1, 2), now=109.0) == []
    assert timeouts.overdue((1, 2), now=111.0) == [1]
    timeouts.forget(1)
    assert timeouts.overdue((2,), now=120.0) == [2]
    assert Timeouts(None).overdue((1,), now=1e9) == []


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate"), Trouble.MEMORY),
        (MemoryError(), Trouble.MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), Trouble.MEMORY),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), Trouble.MEMORY),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), Trouble.DEVICE),
        (IndexError("index 7 is out of bounds"), Trouble.REQUEST),
    ],
)
def test_what_an_error_means(error: Exception, trouble: Trouble) -> None:
    assert trouble_of(error) is trouble


def test_a_halved_batch_grows_again_after_many_good_steps_and_never_beyond_what_was_asked_for() -> None:
    batch = Batch(16, 64)
    batch.failed(step_of(10), Trouble.MEMORY)
    assert (batch.max_sequences, batch.max_tokens) == (5, 16)

    grown = [batch.went_well() for _ in range(3 * GROW_AFTER)]

    assert grown.count(True) == 2
    assert (batch.max_sequences, batch.max_tokens) == (16, 64)


def test_a_step_is_never_halved_below_the_tokens_that_can_only_run_together() -> None:
    batch = Batch(16, 256, grid=64)
    for _ in range(5):
        batch.failed(step_of(2), Trouble.MEMORY)

    assert batch.max_tokens == 64


def step_of(num_sequences: int) -> Step:
    chunk = Chunk(
        sequence_id=0,
        token_ids=[1],
        start=0,
        length=1,
        tables=(),
        sample_indices=(0,),
        sampling=SamplingParams(),
        prompt_len=1,
    )
    return Step(chunks=(chunk,) * num_sequences)


def test_torch_says_that_it_has_no_memory_as_we_expect() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 50, dtype=torch.uint8)

    assert trouble_of(raised.value) is Trouble.MEMORY
    assert torch.OutOfMemoryError.__name__ == "OutOfMemoryError"
