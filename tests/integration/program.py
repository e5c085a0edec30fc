"""The program as a user starts it: a process of its own, in a folder of its own, with a state directory of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEADLINE = 180.0


@dataclass(frozen=True, slots=True)
class Program:
    """Runs commands in a folder of its own, with a state directory of its own and a fake engine."""

    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTMILL_")}
        return {
            **inherited,
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            "HF_HUB_OFFLINE": "1",
            "NIGHTMILL_HOME": str(self.folder / "home"),
            "NIGHTMILL_ENGINE_FACTORY": "tests.fakes:fake_engine",
            "NIGHTMILL_RECONCILE_SECONDS": "0.5",
            "NIGHTMILL_SEGMENT_SECONDS": "0.2",
            "NIGHTMILL_WATCH_SECONDS": "0.1",
            "NIGHTMILL_IDLE_EXIT_SECONDS": "1",
            "NIGHTMILL_HINT_STALE_SECONDS": "3",
            **self.settings,
        }

    def submit(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """`python submit_job.py ...`"""
        return self._run(sys.executable, str(ROOT / "submit_job.py"), *map(str, arguments))

    def nightmill(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self._run(sys.executable, "-m", "nightmill", *map(str, arguments))

    def start(self, *command: str | Path, **options: Any) -> subprocess.Popen[str]:
        """A command that goes on; the caller ends it."""
        return subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=self.folder, env=self.environment, text=True, **options
        )

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
