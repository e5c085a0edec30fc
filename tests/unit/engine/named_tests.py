"""Tests named as data: `file::function`, the file relative to `tests`. They are looked up, not run."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[2]


@cache
def functions(file: str) -> frozenset[str]:
    """The test functions of a file that pytest collects; none if there is no such file."""
    path = TESTS / file
    if not path.is_file() or not path.name.startswith("test_"):
        return frozenset()
    nodes = ast.parse(path.read_text()).body
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def missing(tests: Iterable[str]) -> list[str]:
    """Those that do not exist."""
    parted = [(test, *test.partition("::")[::2]) for test in tests]
    return [test for test, file, name in parted if name not in functions(file)]
