"""Tables show text as it is."""

from __future__ import annotations

import json

import pytest

from jobs.cli import terminal


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (1234567, "1,234,567"),
        (0.5, "0.500"),
        (True, "yes"),
        ([], "-"),
        (["a", "b"], "a; b"),
        ({"rows": 1200}, "rows 1,200"),
        ("[/bold]", "[/bold]"),
    ],
)
def test_a_cell_is_what_a_reader_wants(value: object, shown: str) -> None:
    assert terminal.cell(value) == shown


def test_text_that_looks_like_markup_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.write_rows([{"a": 1, "text": "[red]x[/nothing]"}], ["a", "text"], as_json=False)

    assert "[red]x[/nothing]" in capsys.readouterr().out


def test_json_lines_hold_more_than_the_columns_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.write_rows([{"a": 1, "b": "ü"}], ["a"], as_json=True)

    assert json.loads(capsys.readouterr().out) == {"a": 1, "b": "ü"}
