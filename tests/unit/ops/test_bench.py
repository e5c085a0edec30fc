"""The benchmark's own logic: which cells are left, and what its table claims."""

from __future__ import annotations

from dataclasses import asdict

from ops.bench.run import Cell, missing
from ops.bench.table import render


def line(engine: str, seconds: float, *, number: int = 0, hashes: tuple[str, ...] = ("a", "b")) -> dict[str, object]:
    cell = Cell(number, "tiny", "few-shot", engine, rows=2, new_tokens_per_row=8, threads=1)
    speed = {"seconds": seconds, "cpu_seconds": seconds / 2, "tok_s": 16 / seconds}
    counts = {"prompt_tokens": 100, "cached_tokens": 80 if engine == "nightmill" else 0, "row_hashes": list(hashes)}
    machine = {"cpu": "a CPU", "dtype": "float32", "torch": "2", "transformers": "5", "python": "3.11"}
    return asdict(cell) | speed | counts | machine | {"measured_at": "2030-01-02T03:04:05Z"}


def test_a_cell_with_a_line_is_not_run_again_and_another_round_of_it_is():
    cells = [Cell(number, "tiny", "few-shot", "nightmill", 2, 8, 1) for number in (0, 1)]

    assert missing(cells, [line("nightmill", 1.0, number=0)]) == [cells[1]]


def test_the_ratio_is_that_of_the_medians_over_rounds():
    ours = [line("nightmill", seconds, number=number) for number, seconds in enumerate((1.0, 2.0, 9.0))]
    theirs = [line("transformers-cb", seconds, number=number) for number, seconds in enumerate((20.0, 10.0, 90.0))]

    row = render(ours + theirs).splitlines()[2]

    assert row == "| tiny | few-shot | 2 x 8 | 3 | 8.0 | 0.8 | 10.0 | 10.0 | 2 of 2 | 80.0 % |"


def test_rows_that_differ_are_counted():
    table = render([line("nightmill", 1.0), line("transformers-cb", 1.0, hashes=("a", "c"))])

    assert "1 of 2" in table


def test_an_engine_alone_gets_no_ratio():
    row = render([line("nightmill", 1.0)]).splitlines()[2]

    assert row == "| tiny | few-shot | 2 x 8 | 1 | 16.0 |  |  |  | 80.0 % |"
