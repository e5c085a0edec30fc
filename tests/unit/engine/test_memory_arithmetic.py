"""How many blocks and slots are in use at most: those of shared tokens once, the others once per sequence, no more.

16 tokens make a block. The whole batch fits into one step, so all sequences grow side by side.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.cache.groups import LayerGroup
from engine.request import Completion, Junction, Request
from engine.step import Sampled, Step
from tests.unit.engine.harness import Harness, group, request

NEW = 64
FULL = group(0, block_size=16)
SLIDING = group(1, window=512, block_size=16)
SLOTS = LayerGroup.of_states(1, (1, 2))


class Watched(Harness):
    """Notes what each group has in use, when a step has its blocks and when it has ended."""

    def __init__(self, *groups: LayerGroup, allow_block_sharing: bool) -> None:
        super().__init__(
            groups,
            num_blocks=2_500,
            max_batch_tokens=40_000,
            max_sequences=32,
            allow_block_sharing=allow_block_sharing,
        )
        self.in_steps: list[list[int]] = []
        self.after_steps: list[list[int]] = []
        self._run, self.runner.run = self.runner.run, self._noted  # type: ignore[method-assign]

    def _noted(self, step: Step) -> list[Sampled]:
        self.in_steps.append(self._in_use())
        return self._run(step)

    def step(self) -> list[Completion]:
        completions = super().step()
        self.after_steps.append(self._in_use())
        return completions

    def _in_use(self) -> list[int]:
        return [manager.pool.num_used for manager in self.cache.managers]

    @property
    def peak(self) -> list[int]:
        return [max(counts) for counts in zip(*self.in_steps, *self.after_steps, strict=True)]


def rows() -> list[Request]:
    """32 prompts of 1,000 tokens; the first 900 are the same."""
    shared = list(range(900))
    wanted = [request(str(row), [*shared, *range(1_000 * row, 1_000 * row + 100)], NEW) for row in range(1, 33)]
    junction = Junction(len(shared), 31)
    first = replace(wanted[0], junctions=(junction,))
    return [first, *(replace(each, planned_tokens=len(shared)) for each in wanted[1:])]


def test_32_rows_behind_one_prefix_hold_it_once() -> None:
    shared, alone = (Watched(FULL, allow_block_sharing=sharing) for sharing in (True, False))

    shared.run(*rows())
    alone.run(*rows())

    # 1,063 tokens are in the cache at the end of each row, as the last one never runs: 67 blocks, of which 56 are whole
    # blocks of the 900.
    assert alone.peak == [32 * 67]
    assert shared.peak == [56 + 32 * 11]
    assert shared.peak[0] / alone.peak[0] < 0.25


@pytest.mark.parametrize(
    ("other", "shared_peak", "alone_peak", "shared_end", "alone_end"),
    [
        # The window of 512 before token 1,056, where the last blocks were taken, begins in block 34. Without sharing
        # the prompt is the peak: it runs as one chunk, which needs all of its 63 blocks.
        pytest.param(SLIDING, 28 + 16 * 5, 16 * 63, 28 + 16 * 5, 16 * 33, id="sliding"),
        pytest.param(SLOTS, 16, 16, 16, 16, id="states"),
    ],
)
def test_16_samples_hold_their_prompt_once(
    other: LayerGroup, shared_peak: int, alone_peak: int, shared_end: int, alone_end: int
) -> None:
    shared, alone = (Watched(FULL, other, allow_block_sharing=sharing) for sharing in (True, False))
    wanted = request("row", range(1_000), NEW, num_samples=16)

    shared.run(wanted)
    alone.run(wanted)

    # 62 whole blocks of the prompt, and 67 blocks at the end of each sample.
    assert alone.peak == [16 * 67, alone_peak]
    assert shared.peak == [62 + 16 * 5, shared_peak]
    assert alone.in_steps[-1] == [16 * 67, alone_end]
    assert shared.in_steps[-1] == [62 + 16 * 5, shared_end]


@pytest.mark.parametrize("other", [SLIDING, SLOTS], ids=["sliding", "states"])
def test_what_is_kept_for_later_rows_is_one_partial_block_or_slot_beside_the_shared_ones(other: LayerGroup) -> None:
    harness = Watched(FULL, other, allow_block_sharing=True)
    first, second, *_ = rows()
    harness.scheduler.submit(replace(first, junctions=(Junction(900, 1),)))
    while harness.scheduler.num_running + harness.scheduler.num_waiting:
        harness.step()

    kept = harness.after_steps[-1]
    harness.run(replace(second, planned_tokens=900))

    # 56 whole blocks, of which the window before token 900 needs those from 24 on, and the copies.
    assert kept == [56 + 1, 56 - 24 + 1 if other is SLIDING else 1]
