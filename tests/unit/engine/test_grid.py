"""On a grid a prompt runs in the same cells, whatever was cached and whoever comes with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.grid import ANYWHERE, Grid
from engine.request import Junction
from tests.unit.engine.harness import LINEAR, Harness, request

GRID = Grid(8)


def test_cells_are_those_of_the_grid_and_generated_tokens_stand_alone() -> None:
    assert list(GRID.cells(0, 22, 20)) == [(0, 8), (8, 8), (16, 4), (20, 1), (21, 1)]
    assert list(GRID.cells(8, 16, 20)) == [(8, 8)]


def test_a_cell_is_never_cut() -> None:
    with pytest.raises(AssertionError, match="end within a cell"):
        list(GRID.cells(0, 12, 20))


@pytest.mark.parametrize(
    ("start", "length", "fits"),
    [(0, 7, 0), (0, 8, 8), (0, 17, 16), (8, 11, 8), (16, 3, 0), (16, 4, 4), (16, 9, 9), (24, 3, 3)],
)
def test_a_chunk_ends_on_the_grid_or_with_the_prompt_or_beyond_it(start: int, length: int, fits: int) -> None:
    assert GRID.fit(start, length, prompt_len=20) == fits
    assert ANYWHERE.fit(start, length, prompt_len=20) == length


def test_junctions_move_down_to_the_grid_and_are_counted_together() -> None:
    wanted = (Junction(3, 2), Junction(9, 1), Junction(15, 4), Junction(16, 1))

    assert GRID.junctions(wanted) == (Junction(8, 5), Junction(16, 1))
    assert ANYWHERE.junctions(wanted) == wanted


def chunks_of(harness: Harness, name: str) -> list[tuple[int, int]]:
    """Where the chunks of one request's prompt lie, as (start, end), while everything runs to its end."""
    seen = []
    while (step := harness.scheduler.schedule()) is not None:
        for chunk in step.chunks:
            sequence = harness.scheduler._sequences[chunk.sequence_id]
            if sequence.request.request_id == name and chunk.start < chunk.prompt_len:
                seen.append((chunk.start, chunk.start + chunk.length))
        harness.scheduler.update(step, harness.runner.run(step), 1.0)
        harness.scheduler.check_integrity()
    return seen


@pytest.mark.parametrize(("budget", "chunks"), [(8, [8, 16, 20]), (13, [8, 20]), (20, [20]), (30, [20])])
def test_a_prompt_is_cut_at_multiples_whatever_the_budget(budget: int, chunks: list[int]) -> None:
    harness = Harness(LINEAR, max_batch_tokens=budget, grid=GRID)
    harness.scheduler.submit(request("row", range(20)))

    assert chunks_of(harness, "row") == list(zip([0, *chunks], chunks, strict=False))


def test_a_prompt_waits_while_no_cell_fits() -> None:
    harness = Harness(LINEAR, max_batch_tokens=8, grid=GRID)
    harness.scheduler.submit(request("first", [1, 2], max_tokens=4))
    harness.step()
    harness.scheduler.submit(request("second", range(20), max_tokens=2))

    for _ in range(3):
        harness.step()

    assert [completion.request_id for completion in harness.completions] == ["first"]
    assert chunks_of(harness, "second") == [(0, 8), (8, 16), (16, 20)]


def test_a_planned_start_moves_down_to_the_grid_and_what_it_costs_is_named() -> None:
    harness = Harness(LINEAR, max_batch_tokens=64, grid=GRID)
    first = replace(request("first", range(20)), junctions=(Junction(13, 1),))
    second = replace(request("second", [*range(13), 40, 41]), planned_tokens=13)

    done = harness.run(first, second)

    counters = done["second", 0].counters
    assert (counters.cached_tokens, counters.planned_tokens) == (8, 13)
    assert counters.limited_by == (("grid", 5),)


def test_equal_prompts_start_at_their_last_multiple() -> None:
    harness = Harness(LINEAR, max_batch_tokens=64, grid=GRID)
    first = replace(request("first", range(20)), junctions=(Junction(19, 1),))
    second = replace(request("second", range(20)), planned_tokens=19)

    done = harness.run(first, second)

    assert done["second", 0].counters.cached_tokens == 16


def test_blocks_beyond_the_last_whole_cell_serve_nobody_else() -> None:
    """The tokens 8 to 12 of the longer prompt are part of a longer scan."""
    harness = Harness(LINEAR, max_batch_tokens=64, grid=GRID)

    done = harness.run(request("short", range(12), max_tokens=1), request("long", range(20), max_tokens=1))

    shared = [done[name, 0].counters.groups[0].shared for name in ("short", "long")]
    assert sum(shared) == 2  # blocks of 4 tokens: of the one cell that both have whole
