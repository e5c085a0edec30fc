"""A row's tokens depend on the row alone: not on its neighbours, its shard, what is shared, or a preemption."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.config import EngineConfig
from tests.acceptance.placement import Judge, Placement, real_rows

pytestmark = pytest.mark.models

MODELS = ["gemma3-270m", "smollm2-135m"]
CONFIG = EngineConfig(cache_bytes=1 << 30)
REFERENCE = Placement(config=CONFIG, shard_rows=10_000, in_flight=1)
PLACEMENTS = {
    "small shards, several in flight": Placement(config=CONFIG, shard_rows=40, in_flight=3),
    "nothing shared, other neighbours": Placement(
        config=replace(CONFIG, allow_block_sharing=False, max_batch_tokens=200, max_sequences=16),
        shard_rows=100,
        in_flight=2,
        order="shuffled",
    ),
    "blocks shared, no prefill skipped": Placement(
        config=replace(CONFIG, use_prefix_sharing=False), shard_rows=500, in_flight=1, order="reversed"
    ),
    "without a plan": Placement(config=CONFIG, shard_rows=300, in_flight=2, order="shuffled", planned=False),
    "preempted": Placement(config=CONFIG, shard_rows=200, in_flight=1, order="shuffled", is_crowded=True),
}
SAMPLE = ("small shards, several in flight", "nothing shared, other neighbours", "preempted")


def check(model: Path, cuts: int, limit: int | None, names: tuple[str, ...], least: int) -> None:
    rows = real_rows(model / "tokenizer.json", cuts, limit)
    assert len(rows) >= least
    wanted, _ = REFERENCE.run(model, rows)
    judge = Judge(model)
    wrong = []
    for name in names:
        gc.collect()  # the engine before holds its weights and its cache in a circle
        got, preemptions = PLACEMENTS[name].run(model, rows)
        wrong += [f"{name}: {line}" for line in judge.differences(rows, wanted, got)]
        assert (preemptions > 0) == (name == "preempted"), name
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_of_rows_is_the_same_wherever_it_runs(demo_model: Callable[[str], Path], name: str) -> None:
    check(demo_model(name), 3, 40, SAMPLE, 40)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_thousand_rows_are_the_same_wherever_they_run(demo_model: Callable[[str], Path], name: str) -> None:
    check(demo_model(name), 8, None, tuple(PLACEMENTS), 1000)
