"""What the kernels read of the block tables is what the scheduler's tables say in that very step."""

from __future__ import annotations

import random

import pytest

from engine.cache.groups import LayerGroup
from engine.model.batch import PackedStep, pack
from engine.step import NULL_BLOCK, Sampled, Step
from tests.unit.engine.harness import FULL, HYBRID, Harness, group, request

LAYOUTS = {
    "full": FULL,
    "hybrid": HYBRID,
    "window of 1": (group(0, window=1), group(1, window=5, block_size=2)),
    "three sizes": (group(0, block_size=8), group(1, window=3), group(2, window=9, block_size=2)),
}


def assert_equal(packed: PackedStep, step: Step, groups: tuple[LayerGroup, ...]) -> None:
    for item, spans in zip(groups, packed.spans, strict=True):
        for row, chunk in enumerate(step.chunks):
            host, end = chunk.tables[item.index], chunk.start + chunk.length
            low = 0 if item.window is None else max(0, chunk.start - item.window + 1)
            places = range(low // item.block_size, -(-end // item.block_size))
            assert spans.first_blocks[row] == places.start
            assert spans.tables[row, : len(places)].tolist() == [host[place] for place in places]
            assert set(spans.tables[row, len(places) :].tolist()) <= {NULL_BLOCK}, "the unused tail names blocks"
            first = int(spans.offsets[row])
            written = spans.write_slots[first : first + chunk.length]
            wanted = [
                host[at // item.block_size] * item.block_size + at % item.block_size for at in range(chunk.start, end)
            ]
            assert written.tolist() == wanted


@pytest.mark.parametrize("groups", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_packed_tables_equal_the_scheduler_s_after_blocks_left_the_window(groups: tuple[LayerGroup, ...]) -> None:
    """Also while sequences of very different lengths run together, and when blocks have changed their owner."""
    rng = random.Random(2)
    harness = Harness(groups, num_blocks=60, max_batch_tokens=16, max_sequences=5)
    run, num_left, num_padded = harness.runner.run, 0, 0

    def packed_and_run(step: Step) -> list[Sampled]:
        nonlocal num_left, num_padded
        packed = pack(step.chunks, groups)
        assert_equal(packed, step, groups)
        num_left += any(NULL_BLOCK in chunk.tables[item.index] for chunk in step.chunks for item in groups)
        num_padded += any((spans.tables == NULL_BLOCK).any() for spans in packed.spans)
        return run(step)

    harness.runner.run = packed_and_run  # type: ignore[method-assign]
    for wave in range(2):
        harness.run(
            *[request(f"{wave}.{n}", [rng.randrange(9) for _ in range(rng.randint(1, 40))], 12) for n in range(8)]
        )

    assert num_padded > 0
    assert num_left > 0 or groups == FULL


def test_a_table_that_lacks_a_visible_block_is_a_bug() -> None:
    harness = Harness(HYBRID)
    harness.scheduler.submit(request("a", range(20)))
    step = harness.scheduler.schedule()
    assert step is not None
    table = step.chunks[0].tables[1]
    assert isinstance(table, list)
    table[3] = NULL_BLOCK

    with pytest.raises(AssertionError, match="group 1: a visible block is missing"):
        pack(step.chunks, HYBRID)
