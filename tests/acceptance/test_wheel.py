"""The wheel is the whole program and nothing else: it works outside the checkout, in an environment of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.acceptance.conftest import ROOT, Shell
from tests.unit.jobs.tiny_model import make_model

SHIPPED = ("engine", "jobs", "storage", "migrations")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that nothing is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for package in SHIPPED:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("tests", "ops"):
        (source / folder).mkdir()
        (source / folder / "__init__.py").touch()
    for name in ("nightmill.py", "submit_job.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(target)]
    subprocess.run([*build, str(source)], check=True)
    return next(target.glob("nightmill-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an empty environment with the wheel; its dependencies are lent from this one, nothing else is.

    A folder named in a .pth file lends its packages, but its own .pth files, and so the editable checkout, stay out.
    """
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def outside(python: Path, tmp_path: Path) -> Shell:
    """A shell outside the checkout, whose worker uses the fake engine."""
    (tmp_path / "cwd" / "fakes").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "fakes.py", tmp_path / "cwd" / "fakes" / "outside_fakes.py")
    extra = {
        "NIGHTMILL_ENGINE_FACTORY": "outside_fakes:fake_engine",
        "PYTHONPATH": str(tmp_path / "cwd" / "fakes"),
    }
    return Shell(home=tmp_path / "home", cwd=tmp_path / "cwd", extra=extra)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.parquet"
    pq.write_table(pa.table({"custom_id": ["a", "b", "c"], "prompt": ["the", "the cat", "the dog"]}), path)
    return path


def test_wheel_holds_the_program_and_neither_tests_nor_ops(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()

    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {*SHIPPED, "nightmill.py"}
    for package in SHIPPED:
        shipped = {name for name in names if name.startswith(f"{package}/")}
        wanted = {
            str(path.relative_to(ROOT))
            for path in (ROOT / package).rglob("*")
            if path.suffix in (".py", ".c", ".html", ".mako") and "__pycache__" not in path.parts
        }
        assert shipped == wanted


@pytest.mark.integration
def test_installed_program_upgrades_a_database_plans_and_runs_a_job(
    outside: Shell, python: Path, prompts: Path, tmp_path: Path
):
    model = make_model(tmp_path / "model")
    nightmill = python.parent / "nightmill"
    submit = [nightmill, "submit", prompts, "-o", "out", "--model", model, "--raw-prompt", "--max-tokens", "4"]

    where = outside.run([python, "-c", "import jobs.cli; print(jobs.cli.__file__)"]).stdout
    outside.run([nightmill, "db", "upgrade"])
    outside.run([*submit, "--dry-run"])
    planned_only = not (outside.cwd / "out" / "manifest.json").exists()
    outside.run(submit)
    again = outside.run([python, "-m", "nightmill", "list", "--json"]).stdout

    assert not where.startswith(str(ROOT / "jobs"))
    assert planned_only
    assert pq.read_table(outside.cwd / "out" / "data")["custom_id"].to_pylist() == ["a", "b", "c"]
    assert [json.loads(line)["state"] for line in again.splitlines()] == ["completed"]
