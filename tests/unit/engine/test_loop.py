from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from engine.config import EngineConfig
from engine.errors import ConfigError, EngineDead
from engine.loop import Engine
from engine.request import Completion, Request
from engine.step import Sampled, Step
from tests.unit.engine.fake_runner import FakeRunner, reference
from tests.unit.engine.harness import HYBRID, LINEAR, request

TIMEOUT = 20.0


class GatedRunner(FakeRunner):
    """Runs only while the gate is open, so that a test can look at a busy engine."""

    def __init__(self) -> None:
        super().__init__(HYBRID)
        self.gate = threading.Event()
        self.gate.set()

    def run(self, step: Step) -> list[Sampled]:
        assert self.gate.wait(TIMEOUT)
        return super().run(step)


@pytest.fixture
def runner() -> GatedRunner:
    return GatedRunner()


@pytest.fixture
def engine(runner: GatedRunner) -> Iterator[Engine]:
    config = EngineConfig(num_blocks=100, block_size=4, max_batch_tokens=32, max_sequences=4)
    engine = Engine(runner, HYBRID, config, frozenset({7}), max_model_len=200)
    engine.start()
    yield engine
    runner.gate.set()
    engine.stop()


def expected(item: Request) -> tuple[int, ...]:
    return reference(item.prompt, item.sampling.max_tokens, frozenset({7}))


def by_id(completions: list[Completion]) -> dict[str, Completion]:
    return {item.request_id: item for item in completions}


def test_a_feed_gives_one_completion_per_request(engine: Engine) -> None:
    requests = [request(str(number), [1, 2, 3, number], 5) for number in range(20)]

    with engine.feed(requests) as feed:
        done = by_id(list(feed))

    assert {name: item.token_ids for name, item in done.items()} == {
        item.request_id: expected(item) for item in requests
    }
    assert feed.done
    assert engine.load == 0
    assert engine.totals().num_finished == 20
    assert engine.block_use("job")[0].peak > 0


def test_two_feeds_run_side_by_side_and_get_their_own_completions(engine: Engine) -> None:
    first = engine.feed(request(f"a{number}", [1, number], 5, job="a") for number in range(10))
    second = engine.feed(request(f"b{number}", [1, number], 5, job="b") for number in range(10))

    assert {item.job for item in second} == {"b"}
    assert {item.request_id for item in first} == {f"a{number}" for number in range(10)}


def test_requests_are_pulled_only_while_the_queue_is_short(engine: Engine, runner: GatedRunner) -> None:
    pulled = 0

    def endless() -> Iterator[Request]:
        nonlocal pulled
        while True:
            pulled += 1
            yield request(str(pulled), [pulled], 3)

    with engine.feed(endless()) as feed:
        received = 0
        while received < 50:
            completions = feed.poll(TIMEOUT)
            assert completions
            received += len(completions)
            assert engine.load <= 2 * 4 + 1
    while not feed.done:
        received += len(feed.poll(TIMEOUT))

    assert pulled == received


def test_a_refused_request_is_an_error_completion_and_the_others_go_on(engine: Engine) -> None:
    requests = [request("long", [1] * 199, 5, num_samples=2), request("empty", []), request("good", [1, 2], 3)]

    done = [(item.request_id, item.finish_reason, item.error_code) for item in engine.feed(requests)]

    assert sorted(done) == [
        ("empty", "error", "invalid_request"),
        ("good", "length", None),
        ("long", "error", "context_length"),
        ("long", "error", "context_length"),
    ]


def test_a_row_with_an_option_without_meaning_is_refused_by_its_name(engine: Engine) -> None:
    bad, good = request("bad", [1, 2], 3), request("good", [1, 2], 3)

    done = by_id(list(engine.feed([replace(bad, sampling=replace(bad.sampling, top_p=math.nan)), good])))

    assert done["bad"].error_code == "invalid_request"
    assert "'bad': top_p is nan" in (done["bad"].error_message or "")
    assert done["good"].token_ids == expected(good)


def test_a_stop_check_that_cannot_be_built_fails_its_row_alone(engine: Engine) -> None:
    def broken() -> None:
        raise ValueError("no tokenizer")

    requests = [request("bad", [1], make_stop=broken), request("good", [1, 2], 3)]  # type: ignore[arg-type]

    done = by_id(list(engine.feed(requests)))

    assert done["bad"].finish_reason == "error"
    assert "no tokenizer" in (done["bad"].error_message or "")
    assert done["good"].token_ids == expected(requests[1])


def test_an_exception_in_a_feeds_iterator_fails_only_that_feed(engine: Engine) -> None:
    def broken() -> Iterator[Request]:
        yield request("a", [1, 2], 3)
        raise OSError("the plan file is gone")

    bad, good = engine.feed(broken()), engine.feed([request("b", [3], 3)])

    assert [item.request_id for item in good] == ["b"]
    assert [item.request_id for item in bad.poll(TIMEOUT)] == ["a"]
    assert not bad.done
    with pytest.raises(OSError, match="plan file"):
        bad.poll(TIMEOUT)
    assert bad.done
    assert engine.alive


def test_leaving_a_feed_aborts_its_requests_and_no_other(engine: Engine, runner: GatedRunner) -> None:
    other = engine.feed([request("other", [9], 30)])
    with engine.feed(request(str(number), [number], 100) for number in range(100)) as feed:
        pass

    completions = list(feed)

    assert {item.finish_reason for item in completions} <= {"abort"}
    assert [item.token_ids for item in other] == [expected(request("other", [9], 30))]
    assert engine.load == 0


def test_a_runner_that_raises_ends_the_engine_for_every_feed(engine: Engine, runner: GatedRunner) -> None:
    runner.fails_at_step = 3
    first, second = engine.feed([request("a", [1], 50)]), engine.feed([request("b", [2], 50)])

    for feed in (first, second):
        with pytest.raises(EngineDead, match="device is gone"):
            list(feed)

    assert not engine.alive
    with pytest.raises(EngineDead):
        engine.feed([])


def test_stop_ends_open_requests_as_abort_and_may_be_called_twice(engine: Engine) -> None:
    feed = engine.feed([request("a", [1, 2, 3], 150, ignore_eos=True)] * 3)

    engine.stop()
    engine.stop()

    assert {item.finish_reason for item in feed} <= {"abort", "length"}
    assert not engine.alive
    engine.check_integrity()
    with pytest.raises(EngineDead, match="stopped"):
        engine.feed([])


def test_poll_returns_nothing_when_nothing_finishes_in_time(engine: Engine, runner: GatedRunner) -> None:
    runner.gate.clear()
    feed = engine.feed([request("a", [1], 3)])

    assert feed.poll(0.01) == []
    assert not feed.done
    runner.gate.set()
    assert len(list(feed)) == 1


def test_the_age_of_the_last_step_grows_while_a_step_hangs(engine: Engine, runner: GatedRunner) -> None:
    runner.gate.clear()
    feed = engine.feed([request("a", [1], 3)])

    feed.poll(0.2)
    hanging = engine.last_step_age()
    feed.poll(0.1)
    assert engine.last_step_age() > hanging
    runner.gate.set()
    list(feed)
    assert engine.last_step_age() < TIMEOUT


def test_released_sequences_are_told_to_the_runner(engine: Engine, runner: GatedRunner) -> None:
    assert len(list(engine.feed([request(str(number), [number], 2) for number in range(3)]))) == 3
    list(engine.feed([request("later", [5], 2)]))

    assert set(runner.forgotten) >= {0, 1, 2}


def test_an_engine_without_a_number_of_blocks_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_blocks"):
        Engine(FakeRunner(HYBRID), HYBRID, EngineConfig(), frozenset(), max_model_len=10)


@pytest.mark.parametrize(("num_slots", "is_said"), [(4, True), (5, False)])
def test_fewer_state_slots_than_sequences_are_said_to_limit_the_batch(
    num_slots: int, is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = EngineConfig(num_blocks=50, num_state_slots=num_slots, max_sequences=4, block_size=4)

    Engine(FakeRunner(LINEAR), LINEAR, config, frozenset(), max_model_len=10)

    assert ("num_state_slots is 4, so at most 3 sequences" in caplog.text) == is_said
