"""The parts of a step add up, and what they are timed by is there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.model.project import ProjectedTiles
from engine.model.runner import ModelRunner, PagedLayers
from ops.bench.split import PARTS, RunSeconds, Stopwatch, occupancy, occupancy_by_time, split_of


class Runner:
    """As ours: samples from tiles that cost time to make, and its layers tell what attention took in them."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def inline_seconds(self) -> float:
        return self.seconds

    def _forward(self) -> str:
        self.seconds += 100.0
        return "rows"

    def _sample(self, draws: list[int], rows: str, tiles: object) -> list[object]:
        return [*tiles(rows)]  # type: ignore[operator]

    def run(self, step: object) -> list[int]:
        return [1]


class Tiles:
    def pick(self, rows: str) -> bool:
        return rows == "rows"

    def __call__(self, rows: str) -> Iterator[tuple[int, str]]:
        yield from [(0, "tile"), (8, "tile")]


class Layers:
    def inline(self) -> None:
        return None

    def attend(self) -> int:
        return 7


class Step:
    chunks = ("first", "second")


def test_parts_add_up_to_the_wall_clock():
    inside = RunSeconds(forward=4.0, attention=1.0, sample=2.0, logits=1.5)

    split = split_of(wall=10.0, schedule=0.5, run=7.0, update=0.25, inside=inside)

    assert tuple(split) == PARTS
    assert sum(split.values()) == pytest.approx(10.0)
    assert split == {
        "schedule": 0.5, "inputs": 1.0, "forward": 4.5, "attention": 1.0, "sampling": 0.5, "update": 0.25, "idle": 2.25
    }  # fmt: skip


def test_every_method_that_is_timed_exists():
    assert all(callable(getattr(ModelRunner, name)) for name in ("_forward", "_sample", "run", "inline_seconds"))
    assert all(map(callable, (PagedLayers.inline, PagedLayers.attend, ProjectedTiles.pick, ProjectedTiles.__call__)))


def test_timed_methods_answer_as_before_and_their_time_is_kept():
    stopwatch = Stopwatch()
    stopwatch.attach(Runner, Layers, Tiles)
    runner, tiles = Runner(), Tiles()

    answers = (runner._forward(), Layers().attend(), runner._sample([], "rows", tiles), runner.run(Step()))

    assert answers == ("rows", 7, [(0, "tile"), (8, "tile")], [1])
    assert all(seconds > 0 for seconds in stopwatch.sums.values())
    assert 100.0 < stopwatch.sums["attention"] < 101.0
    assert stopwatch.sums["logits"] < stopwatch.sums["sample"]
    before = stopwatch.sums["logits"]
    assert tiles.pick("rows")
    assert stopwatch.sums["logits"] > before
    assert [count for _, count in stopwatch.steps] == [2]


def test_occupancy_counts_the_steps_until_that_share_of_the_outputs_was_there():
    steps = [(1.0, 4), (2.0, 4), (3.0, 1)]
    ends = [1.5, 2.5, 2.5, 3.5]

    assert occupancy(steps, ends, most=4) == 0.75
    assert occupancy(steps, ends, most=4, share=0.75) == 1.0


def test_occupancy_by_time_weights_steps_by_their_seconds_and_counts_gaps_as_empty():
    steps = [(0.0, 3.0, 2), (4.0, 5.0, 4), (5.0, 9.0, 1)]
    ends = [5.0, 9.0]

    assert occupancy_by_time(steps, ends, most=4, share=0.5) == 0.5
    assert occupancy_by_time([], ends, most=4) == 0.0
