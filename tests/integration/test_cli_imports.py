"""No command but the worker pays for torch, and help is quick because nothing heavy is imported for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "celery", "pyarrow", "sqlalchemy", "huggingface_hub")

PROBE = """
import json, sys
from jobs.cli import main
try:
    main(json.loads(sys.argv[1]))
except SystemExit as ended:
    code = ended.code
print(json.dumps({"code": code, "modules": sorted(name for name in sys.modules if "." not in name)}))
"""


def run(home: Path, *arguments: str) -> tuple[int, set[str]]:
    """The exit code of a command and the modules that it imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTMILL_")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(arguments)],
        cwd=ROOT,
        env={**environment, "NIGHTMILL_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    return told["code"], set(told["modules"])


@pytest.mark.parametrize("arguments", [["--help"], ["submit", "--help"], ["worker", "--help"], ["schedule", "--help"]])
def test_help_imports_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    code, modules = run(tmp_path, *arguments)

    assert code == 0
    assert modules.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["db", "upgrade"], 0),
        (["db", "current"], 0),
        (["list"], 0),
        (["status", "1"], 9),
        (["stats", "1"], 9),
        (["results", "1"], 9),
        (["cancel", "1"], 9),
        (["pause", "1"], 9),
        (["resume", "1"], 9),
        (["watch", "1"], 9),
        (["doctor"], 0),
        (["schedule", "list"], 0),
        (["schedule", "run", "nightly"], 9),
        (["submit", "missing.parquet", "-o", "OUT", "--model", "none"], 3),
    ],
)
def test_no_command_but_the_worker_imports_torch(tmp_path: Path, arguments: list[str], code: int) -> None:
    ended, modules = run(tmp_path / "home", *arguments)

    assert ended == code
    assert modules.isdisjoint({"torch", "transformers"})
