"""Why a prompt found less than it might have: the layer kind or the rule, and what it cost."""

from __future__ import annotations

import pytest

from engine.cache.groups import LayerGroup
from engine.request import Limits
from tests.unit.engine.harness import FULL, HYBRID, LINEAR, Harness, group, request
from tests.unit.engine.planned import LAYOUTS, planned

PREFIX = list(range(40))


def found(harness: Harness, name: str) -> tuple[int, Limits]:
    (counters,) = [item.counters for item in harness.completions if item.request_id == name]
    return counters.cached_tokens, counters.limited_by


def test_a_prefix_whose_blocks_are_cached_and_whose_state_is_not_names_the_states() -> None:
    harness = Harness(LINEAR)
    harness.run(request("first", [*PREFIX, 1], 1))

    harness.run(request("second", [*PREFIX, 2], 1), request("third", [*PREFIX, 3], 1))

    assert found(harness, "first") == (0, ())
    assert found(harness, "second") == (0, (("linear", 40),))
    assert found(harness, "third") == (40, ()), "where the second one parted, a state was kept"


@pytest.mark.parametrize("more", [(), (group(2, window=1),)], ids=["one window", "beside a smaller one"])
def test_a_prefix_whose_window_was_evicted_names_the_sliding_layers(more: tuple[LayerGroup, ...]) -> None:
    harness = Harness((*HYBRID, *more), num_blocks=[100, 13, 100][: 2 + len(more)])
    harness.run(request("first", PREFIX, 1))
    harness.run(*[request(f"other {number}", [50 + number] * 40, 1) for number in range(3)])

    harness.run(request("second", [*PREFIX, 1], 1))

    assert found(harness, "second") == (0, (("sliding", 40),))


# In a model of states alone a place that was made is never given up while a slot is left for those that run.
@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "states"])
def test_a_planned_place_that_was_given_up_says_evicted(name: str) -> None:
    first, second = planned([[*range(6), 1, 2, 3], [*range(6), 4]], 1)
    sizes = [1 + item.peak_blocks(23, 32) if item.has_blocks else 3 for item in LAYOUTS[name]]
    harness = Harness(LAYOUTS[name], num_blocks=sizes, max_batch_tokens=32, max_sequences=1)

    harness.run(first, request("other", [9] * 23, 1), second)

    assert found(harness, "1") == (0, (("evicted", 6),))


@pytest.mark.parametrize("groups", [LINEAR, FULL], ids=["slots", "blocks"])
def test_a_planned_place_for_which_there_was_no_room_says_so(groups: tuple[LayerGroup, ...]) -> None:
    first, second = planned([[*range(6), 1, 2, 3], [*range(6), 4]], 1)
    sizes = {LINEAR: [100, 2], FULL: [1 + 3]}[groups]
    harness = Harness(groups, num_blocks=sizes, max_batch_tokens=16)

    harness.run(first, second)

    assert found(harness, "1")[1] == (("no room", 6 - found(harness, "1")[0]),)


@pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_planned_place_that_nobody_came_past_says_not_made(groups: tuple[LayerGroup, ...]) -> None:
    first, second = planned([[*range(6), 1, 2, 3], [*range(6), 4]], 1)
    harness = Harness(groups)
    (cancelled,) = harness.scheduler.submit(first)
    harness.scheduler.submit(second)

    harness.scheduler.abort(cancelled)
    harness.run()

    assert found(harness, "1") == (0, (("not made", 6),))


def test_a_plan_without_prefix_sharing_says_switched_off() -> None:
    harness = Harness(use_prefix_sharing=False)

    harness.run(*planned([[*range(6), 1], [*range(6), 2]], 1))

    assert found(harness, "1") == (0, (("switched off", 6),))
