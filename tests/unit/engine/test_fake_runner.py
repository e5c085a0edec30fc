"""The eyes of the other tests: what the fake runner must notice."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.step import BlockCopy, Step
from tests.unit.engine.harness import LINEAR, Harness, request


def second_step(harness: Harness) -> Step:
    """Of one prompt in two chunks, so that there is something to read."""
    harness.scheduler.submit(request("a", range(30)))
    harness.step()
    step = harness.scheduler.schedule()
    assert step is not None
    return step


def share_block(harness: Harness, step: Step) -> None:
    harness.cache.managers[0].pool.ref[step.chunks[0].tables[0][5]] += 1


def register_block(harness: Harness, step: Step) -> None:
    harness.cache.managers[0].pool.node[step.chunks[0].tables[0][5]] = harness.cache._tree.root


def drop_visible_block(harness: Harness, step: Step) -> None:
    step.chunks[0].tables[0][0] = 0  # type: ignore[index]


def take_another_block(harness: Harness, step: Step) -> None:
    step.chunks[0].tables[0][1] = 90  # type: ignore[index]


def take_another_slot(harness: Harness, step: Step) -> None:
    harness.cache.managers[1].pool.taken[7] = 1
    step.chunks[0].tables[1][0] = 7  # type: ignore[index]


def take_a_free_slot(harness: Harness, step: Step) -> None:
    harness.cache.managers[1].pool.taken[step.chunks[0].tables[1][0]] = 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (share_block, "a write goes to a shared block"),
        (register_block, "a write goes to a registered block"),
        (drop_visible_block, "is visible but was dropped"),
        (take_another_block, "holds another"),
        (take_another_slot, "does not hold the state after 20 tokens"),
        (take_a_free_slot, "goes to a slot that is free"),
    ],
)
def test_a_spoilt_table_is_noticed(spoil: Callable[[Harness, Step], None], message: str) -> None:
    harness = Harness(LINEAR, max_batch_tokens=20)
    step = second_step(harness)

    spoil(harness, step)

    with pytest.raises(AssertionError, match=message):
        harness.runner.run(step)


@pytest.mark.parametrize(("spoil", "message"), [(share_block, "shared"), (register_block, "registered")])
def test_a_copy_into_what_others_read_is_noticed(spoil: Callable[[Harness, Step], None], message: str) -> None:
    harness = Harness(LINEAR, max_batch_tokens=20)
    step = second_step(harness)
    table = step.chunks[0].tables[0]

    spoil(harness, step)

    with pytest.raises(AssertionError, match=f"a copy goes to a {message} block"):
        harness.runner.run(Step(step.chunks, (BlockCopy(0, table[0], table[5]),)))
