"""What acceptance tests share: the demo models, and the program run as its users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """Runs commands with a state folder of their own, and no setting of the user's."""

    home: Path
    cwd: Path
    extra: Mapping[str, str]

    def run(
        self, command: Sequence[str | Path], *, timeout: float = 600, code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """The finished command; fails the test with its stderr unless it exits with `code`."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTMILL_")}
        env |= {"NIGHTMILL_HOME": str(self.home), **self.extra}
        done = subprocess.run(
            [str(word) for word in command], cwd=self.cwd, env=env, capture_output=True, text=True, timeout=timeout
        )
        assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def submit_job(self, *arguments: str | Path, timeout: float = 900) -> int:
        """Run submit_job.py to the end of the job; its id."""
        done = self.run([sys.executable, ROOT / "submit_job.py", *arguments], timeout=timeout)
        return int(done.stdout.split()[-1])

    def nightmill(self, *arguments: str) -> str:
        """Stdout of one `nightmill` command."""
        return self.run([sys.executable, "-m", "nightmill", *arguments]).stdout


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    # Enough blocks for every row of these tests, and little enough for several workers on a small machine.
    return Shell(home=tmp_path / "home", cwd=ROOT, extra={"NIGHTMILL_CACHE_BYTES": str(512 << 20)})


@pytest.fixture(scope="session")
def demo_model() -> Callable[[str], Path]:
    """The folder of a converted demo model, by name."""

    def find(name: str) -> Path:
        folder = ROOT / ".cache" / "models" / name
        assert (folder / "config.json").exists(), f"{folder} is missing; run `make models`"
        return folder

    return find
