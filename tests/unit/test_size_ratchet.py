"""Files and functions stay small; the few that are too long may shrink, never grow."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("engine", "storage", "jobs", "migrations", "ops", "tests", "nightmill.py", "submit_job.py")
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50

LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {
    "jobs/app.py::_settings": 59,  # Celery's options, one line each
    "jobs/cli/submit.py::submit": 126,  # its parameters are the command's flags
    "migrations/versions/0001_first_tables.py::upgrade": 207,  # tables, one column a line
}
"""Today's exceptions with their sizes. Lower a number when its owner shrinks; an owner below the limit leaves."""


def python_files() -> Iterator[Path]:
    for source in SOURCES:
        path = ROOT / source
        yield from [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


def file_sizes() -> dict[str, int]:
    return {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in python_files()}


def function_sizes() -> dict[str, int]:
    """Lines of every function and method, by file and qualified name; decorators do not count."""
    sizes: dict[str, int] = {}

    def visit(node: ast.AST, name: str, separator: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{name}{separator}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    assert child.end_lineno is not None
                    sizes[inner] = child.end_lineno - child.lineno + 1
                visit(child, inner, ".")
            else:
                visit(child, name, separator)

    for path in python_files():
        visit(ast.parse(path.read_text()), str(path.relative_to(ROOT)), "::")
    return sizes


def violations(sizes: dict[str, int], limit: int, exceptions: dict[str, int]) -> list[str]:
    """What is longer than the limit or than its exception, and exceptions that are no longer needed."""
    grown = [
        f"{name} has {size} lines, allowed are {exceptions.get(name, limit)}: split it"
        for name, size in sizes.items()
        if size > exceptions.get(name, limit)
    ]
    stale = [f"{name} no longer needs its exception" for name in exceptions if sizes.get(name, 0) <= limit]
    return grown + stale


@pytest.mark.parametrize(
    ("sizes", "limit", "exceptions"),
    [
        pytest.param(file_sizes, MAX_FILE_LINES, LONG_FILES, id="files"),
        pytest.param(function_sizes, MAX_FUNCTION_LINES, LONG_FUNCTIONS, id="functions"),
    ],
)
def test_nothing_outgrows_its_limit(sizes, limit, exceptions):
    found = sizes()
    for name in sorted(found, key=found.__getitem__, reverse=True)[:3]:
        print(f"{found[name]:>5}  {name}")
    wrong = violations(found, limit, exceptions)
    assert not wrong, "\n".join(wrong)


def test_a_grown_exception_and_a_stale_one_are_both_reported():
    sizes = {"a.py": 320, "b.py": 90, "c.py": 301}

    assert violations(sizes, 300, {"a.py": 310, "b.py": 310, "c.py": 301}) == [
        "a.py has 320 lines, allowed are 310: split it",
        "b.py no longer needs its exception",
    ]
