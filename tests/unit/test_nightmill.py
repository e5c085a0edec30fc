"""The public API is what was promised, and importing it costs nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys

import nightmill


def test_exported_names_are_exactly_the_promised_ones() -> None:
    assert nightmill.__all__ == ["open_dataset", "results", "stats", "status", "submit", "wait"]


def test_every_exported_name_is_a_documented_function() -> None:
    for name in nightmill.__all__:
        function = getattr(nightmill, name)
        assert inspect.isfunction(function)
        assert function.__doc__


def test_nothing_else_is_public() -> None:
    public = {
        name
        for name, value in vars(nightmill).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == "nightmill"
    }

    assert public == set(nightmill.__all__)


def test_importing_it_imports_none_of_the_program() -> None:
    script = "import sys, nightmill; sys.exit(any(name.split('.')[0] in ('jobs', 'torch') for name in sys.modules))"

    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0
