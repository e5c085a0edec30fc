"""Where output goes: results to stdout, everything else to stderr; a table on a terminal, JSON lines in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

STDERR = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line for the reader, on stderr, without markup."""
    STDERR.print(text, markup=False)


def is_terminal() -> bool:
    return sys.stdout.isatty()


def write_json(value: Mapping[str, Any]) -> None:
    """One JSON line on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def write_rows(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool, title: str | None = None
) -> None:
    """Rows as a table of these columns, the last of which may wrap; or each as a JSON line with all that it holds."""
    if as_json:
        for row in rows:
            write_json(row)
        return
    *short, last = columns
    drawn = Table(*(Column(name, no_wrap=True) for name in short), last, title=title, title_justify="left")
    for row in rows:
        drawn.add_row(*(Text(cell(row.get(column))) for column in columns))  # plain: the text may look like markup
    Console(highlight=False).print(drawn)


def cell(value: Any) -> str:
    """A value as a reader wants it: thousands separated, three decimals, a dash for nothing."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.3f}"
        case dict():
            return ", ".join(f"{key} {cell(item)}" for key, item in value.items())
        case list():
            return "; ".join(map(cell, value)) or "-"
        case _:
            return str(value)
